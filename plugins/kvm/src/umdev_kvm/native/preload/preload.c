/* preload: lends the VMM's address space to the VM's protector.
 *
 * Loaded into a VMM by LD_PRELOAD. Before the VMM's main() it opens two userfaultfds, which belong to this address
 * space whoever holds them, and gives them to the protector that UMDEV_PROTECTOR names (a unix socket). It keeps the
 * connection, so that the protector sees the VMM end, and nothing else: with a copy of a userfaultfd kept here, a
 * protector's death would not wake blocked vCPUs. Without the variable or the protector nothing happens.
 *
 * No libc, no TLS, no symbol from elsewhere: it runs under any dynamic loader, also one with a libc of its own.
 */
#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>

#ifndef __x86_64__
#error "the preload library makes system calls of x86-64"
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

enum { LEND = 1, VERSION = 1 }; /* as in vm_protector_wire.py */
enum { WAIT_SECONDS = 20, KINDS = 2 }; /* the protector runs by then, on a machine that may be busy */
enum how { BY_INHERITED = 1, BY_DEVICE = 2, BY_SYSCALL = 3 };

struct settings {
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    int device; /* an open /dev/userfaultfd that the VMM inherited, or -1 */
};

/* One frame to the protector; its numbers are the CPU's own. */
struct lend {
    uint32_t length; /* of what follows the operation */
    uint32_t operation;
    uint32_t version;
    int32_t error; /* why there are no descriptors, else 0 */
    uint32_t how;
};

static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static void complain(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    call(SYS_write, 2, (long)text, (long)length, 0, 0);
}

/* One variable of the environment while its bytes go by. */
struct variable {
    const char *name; /* with the = */
    char *value;
    size_t room;
    size_t matched; /* bytes of the name seen so far */
    size_t length;  /* of the value */
    int lost;       /* this one is another variable, or the value is too long */
    int complete;
};

static void variable_take(struct variable *variable, char byte)
{
    if (byte == 0) {
        if (!variable->lost && variable->name[variable->matched] == 0) {
            variable->value[variable->length] = 0;
            variable->complete = 1;
        }
        variable->matched = variable->length = 0;
        variable->lost = variable->complete;
        return;
    }
    if (variable->lost)
        return;
    if (variable->name[variable->matched]) {
        if (variable->name[variable->matched] == byte)
            variable->matched++;
        else
            variable->lost = 1;
    } else if (variable->length + 1 < variable->room) {
        variable->value[variable->length++] = byte;
    } else {
        variable->lost = 1;
    }
}

/* Constructors get the environment as an argument from some C libraries only; the kernel's copy is there for all. */
static int read_settings(struct settings *settings)
{
    char number[12];
    struct variable path = {.name = "UMDEV_PROTECTOR=", .value = settings->path, .room = sizeof(settings->path)};
    struct variable device = {.name = "UMDEV_USERFAULTFD=", .value = number, .room = sizeof(number)};
    long file = call(SYS_open, (long)"/proc/self/environ", O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (file < 0)
        return 0;
    char part[512];
    long got;
    while ((got = call(SYS_read, file, (long)part, sizeof(part), 0, 0)) > 0)
        for (long i = 0; i < got; i++) {
            variable_take(&path, part[i]);
            variable_take(&device, part[i]);
        }
    call(SYS_close, file, 0, 0, 0, 0);
    settings->device = -1;
    if (device.complete && number[0]) {
        settings->device = 0;
        for (const char *digit = number; *digit; digit++) {
            if (*digit < '0' || *digit > '9' || settings->device > 1 << 20) {
                settings->device = -1;
                break;
            }
            settings->device = settings->device * 10 + (*digit - '0');
        }
    }
    return path.complete && settings->path[0] != 0;
}

/* A descriptor, or a negative errno; `how` says where it came from. */
static long open_userfault(int inherited, uint32_t *how)
{
    if (inherited >= 0) {
        *how = BY_INHERITED;
        long userfault = call(SYS_ioctl, inherited, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK, 0, 0);
        if (userfault >= 0)
            return userfault;
    }
    long device = call(SYS_open, (long)"/dev/userfaultfd", O_RDWR | O_CLOEXEC, 0, 0, 0);
    if (device >= 0) {
        *how = BY_DEVICE;
        long userfault = call(SYS_ioctl, device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK, 0, 0);
        call(SYS_close, device, 0, 0, 0, 0);
        if (userfault >= 0)
            return userfault;
    }
    /* Never one for user code alone: KVM's stores, and the VMM's reads into guest memory, would fail instead of
     * wait. */
    *how = BY_SYSCALL;
    return call(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK, 0, 0, 0, 0);
}

static long connect_to(const struct settings *settings)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = 0;
    for (; settings->path[length]; length++)
        address.sun_path[length] = settings->path[length];
    long link = call(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, 0, 0);
    if (link < 0)
        return link;
    if (link < 3) { /* a program may be started without them, and must not write its messages here */
        long moved = call(SYS_fcntl, link, F_DUPFD_CLOEXEC, 3, 0, 0);
        call(SYS_close, link, 0, 0, 0, 0);
        if (moved < 0)
            return moved;
        link = moved;
    }
    struct timeval limit = {.tv_sec = WAIT_SECONDS};
    call(SYS_setsockopt, link, SOL_SOCKET, SO_SNDTIMEO, (long)&limit, sizeof(limit));
    call(SYS_setsockopt, link, SOL_SOCKET, SO_RCVTIMEO, (long)&limit, sizeof(limit));
    size_t address_length = offsetof(struct sockaddr_un, sun_path) + length + 1;
    long result = call(SYS_connect, link, (long)&address, (long)address_length, 0, 0);
    if (result < 0) {
        call(SYS_close, link, 0, 0, 0, 0);
        return result;
    }
    return link;
}

static long send_frame(long link, struct lend *frame, const int *descriptors, size_t count)
{
    union {
        char bytes[CMSG_SPACE(KINDS * sizeof(int))];
        struct cmsghdr header;
    } control;
    struct iovec part = {.iov_base = frame, .iov_len = sizeof(*frame)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
        int *places = (int *)(void *)CMSG_DATA(&control.header);
        for (size_t i = 0; i < count; i++)
            places[i] = descriptors[i];
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    }
    return call(SYS_sendmsg, link, (long)&message, MSG_NOSIGNAL, 0, 0);
}

/* Two of them: a mapping is watched synchronously (TRAP) or asynchronously (TRACK), and the mode is for life. */
static void lend(long link, const struct settings *settings)
{
    struct lend frame = {.operation = LEND, .length = sizeof(frame) - 8, .version = VERSION};
    int descriptors[KINDS];
    size_t count = 0;
    while (count < KINDS && !frame.error) {
        long userfault = open_userfault(settings->device, &frame.how);
        if (userfault < 0)
            frame.error = (int32_t)-userfault;
        else
            descriptors[count++] = (int)userfault;
    }
    long sent = send_frame(link, &frame, descriptors, frame.error ? 0 : count);
    for (size_t i = 0; i < count; i++)
        call(SYS_close, descriptors[i], 0, 0, 0, 0);
    /* Devices ask the protector for this VMM as soon as it connects to them: it has to know it by then. */
    char reply[8];
    long got = sent < 0 ? sent : call(SYS_read, link, (long)reply, sizeof(reply), 0, 0);
    if (got != sizeof(reply)) {
        complain("umdev: the protector did not take this process's userfaultfd; guest memory can't be protected\n");
        call(SYS_close, link, 0, 0, 0, 0);
    }
}

__attribute__((constructor)) static void preload(void)
{
    struct settings settings;
    if (!read_settings(&settings))
        return;
    long link = connect_to(&settings);
    if (link < 0)
        complain("umdev: no protector listens at UMDEV_PROTECTOR; guest memory can't be protected\n");
    else
        lend(link, &settings);
}
