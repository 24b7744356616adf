/* The serial port: a 16550A with its receiver's queue (PC16550D data sheet, section 8). */
#include "internal.h"

#include <poll.h>
#include <unistd.h>

enum { DATA, INTERRUPT_ENABLE, INTERRUPT_IDENT, LINE_CONTROL, MODEM_CONTROL, LINE_STATUS, MODEM_STATUS, SCRATCH };

#define RECEIVED 0x01u
#define TRANSMITTER_EMPTY 0x60u /* holding and shift register */
#define LOOP 0x10u
#define DIVISOR_ACCESS 0x80u

void umdev_kvm_serial_init(umdev_kvm *machine, int console, uint64_t room)
{
    pthread_mutex_init(&machine->serial.mutex, NULL);
    machine->serial.room = room;
    machine->serial.console = console;
}

void umdev_kvm_serial_free(umdev_kvm *machine)
{
    pthread_mutex_destroy(&machine->serial.mutex);
}

static bool waiting(const struct umdev_kvm_serial *serial)
{
    return serial->head != serial->tail;
}

/* The line is high while an enabled reason is there (8.6, 8.7). OUT2 gates it, as on every PC. */
static void update(umdev_kvm *machine)
{
    struct umdev_kvm_serial *serial = &machine->serial;
    bool reason = (waiting(serial) && (serial->interrupt_enable & 1)) ||
                  (serial->transmitter_empty_pends && (serial->interrupt_enable & 2));
    bool level = reason && (serial->modem_control & 8) && !(serial->modem_control & LOOP);
    if (level == serial->level)
        return;
    serial->level = level;
    umdev_kvm_set_line(machine, UMDEV_KVM_SERIAL_GSI, level);
}

static bool receive(struct umdev_kvm_serial *serial, uint8_t byte)
{
    uint32_t next = (serial->tail + 1) % sizeof serial->queue;
    if (next == serial->head)
        return false;
    serial->queue[serial->tail] = byte;
    serial->tail = next;
    return true;
}

static uint8_t read_register(umdev_kvm *machine, uint32_t offset)
{
    struct umdev_kvm_serial *serial = &machine->serial;
    bool divisor = serial->line_control & DIVISOR_ACCESS;
    uint8_t value = 0;
    switch (offset) {
    case DATA:
        if (divisor)
            return serial->divisor[0];
        if (waiting(serial)) {
            value = serial->queue[serial->head];
            serial->head = (serial->head + 1) % sizeof serial->queue;
        }
        break;
    case INTERRUPT_ENABLE:
        return divisor ? serial->divisor[1] : serial->interrupt_enable;
    case INTERRUPT_IDENT: /* reading it answers the transmitter's reason (8.6) */
        value = (serial->fifo_control & 1) ? 0xC0 : 0;
        if (waiting(serial) && (serial->interrupt_enable & 1))
            return value | 4;
        if (serial->transmitter_empty_pends && (serial->interrupt_enable & 2)) {
            serial->transmitter_empty_pends = false;
            value |= 2;
            break;
        }
        return value | 1;
    case LINE_CONTROL:
        return serial->line_control;
    case MODEM_CONTROL:
        return serial->modem_control;
    case LINE_STATUS:
        return (uint8_t)(TRANSMITTER_EMPTY | (waiting(serial) ? RECEIVED : 0));
    case MODEM_STATUS: /* looped back: DTR, RTS, OUT1, OUT2 come in as DSR, CTS, RI, DCD (8.8) */
        if (!(serial->modem_control & LOOP))
            return 0xB0;
        value = (uint8_t)((serial->modem_control & 1) << 5 | (serial->modem_control & 2) << 3 |
                          (serial->modem_control & 0xC) << 4);
        return value;
    case SCRATCH:
        return serial->scratch;
    }
    update(machine);
    return value;
}

/* A pipe may be full and a terminal held: the processor waits, but no longer than the run lasts. */
static bool console_ready(umdev_kvm *machine)
{
    struct pollfd console = {.fd = machine->serial.console, .events = POLLOUT};
    while (!atomic_load(&machine->ending))
        if (poll(&console, 1, 50) > 0)
            return true;
    return false;
}

static void transmit(umdev_kvm *machine, uint8_t byte)
{
    struct umdev_kvm_serial *serial = &machine->serial;
    if (serial->console < 0 || !serial->room)
        return;
    while (console_ready(machine)) {
        ssize_t written = write(serial->console, &byte, 1);
        if (written == 1)
            serial->room--;
        if (written < 0 && (errno == EINTR || errno == EAGAIN)) { /* others were faster, or a line end takes two */
            usleep(1000);
            continue;
        }
        return; /* what it does not take is lost, and the guest goes on: the next byte may find a reader */
    }
}

static void write_register(umdev_kvm *machine, uint32_t offset, uint8_t value)
{
    struct umdev_kvm_serial *serial = &machine->serial;
    bool divisor = serial->line_control & DIVISOR_ACCESS;
    switch (offset) {
    case DATA:
        if (divisor) {
            serial->divisor[0] = value;
            return;
        }
        if (serial->modem_control & LOOP)
            receive(serial, value);
        else
            transmit(machine, value);
        serial->transmitter_empty_pends = true;
        break;
    case INTERRUPT_ENABLE:
        if (divisor) {
            serial->divisor[1] = value;
            return;
        }
        if ((value & ~serial->interrupt_enable) & 2)
            serial->transmitter_empty_pends = true;
        serial->interrupt_enable = value & 0xF;
        break;
    case INTERRUPT_IDENT: /* FIFO Control */
        serial->fifo_control = value;
        if (value & 2)
            serial->head = serial->tail;
        break;
    case LINE_CONTROL:
        serial->line_control = value;
        break;
    case MODEM_CONTROL:
        serial->modem_control = value & 0x1F;
        break;
    case SCRATCH:
        serial->scratch = value;
        break;
    default: /* the status registers take no write */
        break;
    }
    update(machine);
}

void umdev_kvm_serial_access(umdev_kvm *machine, uint32_t offset, uint8_t *bytes, uint32_t length, bool write)
{
    /* Others that want the mutex, such as a person's key, don't wait for a console that takes nothing. */
    if (write && offset == DATA && machine->serial.console >= 0)
        console_ready(machine);
    pthread_mutex_lock(&machine->serial.mutex);
    for (uint32_t i = 0; i < length; i++) {
        if (write)
            write_register(machine, offset + i, bytes[i]);
        else
            bytes[i] = read_register(machine, offset + i);
    }
    pthread_mutex_unlock(&machine->serial.mutex);
}

uint32_t umdev_kvm_serial_receive(umdev_kvm *machine, const void *bytes, uint32_t length)
{
    const uint8_t *byte = bytes;
    uint32_t taken = 0;
    pthread_mutex_lock(&machine->serial.mutex);
    while (taken < length && receive(&machine->serial, byte[taken]))
        taken++;
    update(machine);
    pthread_mutex_unlock(&machine->serial.mutex);
    return taken;
}
