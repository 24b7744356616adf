/* softgpu: raster operations on stretches of bytes. */
#include "internal.h"

void pattern_set(pattern *p, const uint8_t *bytes, uint32_t period, uint64_t length)
{
    p->period = period;
    p->length = period + (uint32_t)(length < PIECE ? length : PIECE);
    p->uniform = true;
    for (uint32_t i = 1; i < period; i++)
        p->uniform = p->uniform && bytes[i] == bytes[0];
    memcpy(p->bytes, bytes, period);
    for (uint32_t filled = period; filled < p->length;) {
        uint32_t part = filled < p->length - filled ? filled : p->length - filled;
        memcpy(p->bytes + filled, p->bytes, part);
        filled += part;
    }
}

static inline uint64_t load(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

/* Eight bytes over and over. Processors store whole lines without reading them first when they are told so; the
 * sanitizers can't see such stores. */
static void store_words(uint8_t *target, uint64_t word, uint64_t words)
{
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    __asm__ volatile("rep stosq" : "+D"(target), "+c"(words) : "a"(word) : "memory");
#else
    for (; words; words--, target += sizeof(word))
        memcpy(target, &word, sizeof(word));
#endif
}

void pattern_fill(const pattern *p, const uint8_t *from, uint8_t *target, uint64_t length)
{
    enum { WORTH = 256 }; /* bytes from which on starting the processor's own loop pays */
    if (p->uniform) {
        memset(target, *from, length);
        return;
    }
    if (sizeof(uint64_t) % p->period == 0 && length >= WORTH) {
        uint64_t word = load(from); /* a pattern has a piece after every phase, unless the row is shorter than this */
        store_words(target, word, length / sizeof(word));
        memcpy(target + (length & ~7ull), &word, length & 7);
        return;
    }
    while (length) {
        uint32_t at = (uint32_t)(from - p->bytes);
        uint32_t part = (uint32_t)(length < p->length - at ? length : p->length - at);
        memcpy(target, from, part);
        target += part;
        length -= part;
        from = p->bytes + (at + part) % p->period;
    }
}

/* All 256 operations in one expression: `table[n]` is all ones where bit n of the operation is set. */
static inline uint64_t evaluate(const uint64_t *table, uint64_t p, uint64_t s, uint64_t d)
{
    uint64_t without_p = (~s & ((~d & table[0]) | (d & table[1]))) | (s & ((~d & table[2]) | (d & table[3])));
    uint64_t with_p = (~s & ((~d & table[4]) | (d & table[5]))) | (s & ((~d & table[6]) | (d & table[7])));
    return (~p & without_p) | (p & with_p);
}

void raster(uint8_t *restrict target, const uint8_t *restrict source, const uint8_t *restrict brush,
            const uint8_t *restrict mask, uint32_t length, uint8_t rop)
{
    static const uint8_t nothing[PIECE]; /* what is not looked at needs no branch in the loop */
    uint64_t table[8];
    for (unsigned i = 0; i < 8; i++)
        table[i] = (rop >> i & 1) ? UINT64_MAX : 0;
    source = source ? source : nothing;
    brush = brush ? brush : nothing;
    uint32_t i = 0;
    for (; i + 8 <= length; i += 8) {
        uint64_t old = load(target + i);
        uint64_t value = evaluate(table, load(brush + i), load(source + i), old);
        if (mask)
            value = (old & ~load(mask + i)) | (value & load(mask + i));
        memcpy(target + i, &value, sizeof(value));
    }
    for (; i < length; i++) {
        uint8_t value = (uint8_t)evaluate(table, brush[i], source[i], target[i]);
        target[i] = mask ? (uint8_t)((target[i] & ~mask[i]) | (value & mask[i])) : value;
    }
}
