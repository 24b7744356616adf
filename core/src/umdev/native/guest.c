/* guest: the loopback guest's loads and stores. */
#include "memory_internal.h"

void umdev_guest_store(uint8_t *address, const void *bytes, uint64_t length)
{
    umdev_copy(address, bytes, length, address);
}

void umdev_guest_load(const uint8_t *address, void *bytes, uint64_t length)
{
    umdev_copy(bytes, address, length, address);
}

void umdev_guest_fill(uint8_t *address, int byte, uint64_t length)
{
    memset(address, byte, length);
}

uint32_t umdev_guest_add32(uint8_t *address, uint32_t value)
{
    return __atomic_fetch_add((uint32_t *)(void *)address, value, __ATOMIC_SEQ_CST);
}

uint64_t umdev_guest_add64(uint8_t *address, uint64_t value)
{
    return __atomic_fetch_add((uint64_t *)(void *)address, value, __ATOMIC_SEQ_CST);
}

uint64_t umdev_guest_exchange64(uint8_t *address, uint64_t value)
{
    return __atomic_exchange_n((uint64_t *)(void *)address, value, __ATOMIC_SEQ_CST);
}

uint64_t umdev_guest_compare_exchange64(uint8_t *address, uint64_t expected, uint64_t value)
{
    __atomic_compare_exchange_n((uint64_t *)(void *)address, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}
