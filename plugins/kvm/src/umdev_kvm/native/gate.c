/* Who may be in the guest: stops, and the end of a run. */
#define _GNU_SOURCE
#include "internal.h"

#include <time.h>

static void kicked(int signal)
{
    (void)signal;
}

static pthread_mutex_t choice = PTHREAD_MUTEX_INITIALIZER;
static int chosen; /* the process's signal that kicks, with the mutex; 0: none yet */

/* Whether `signal` has our handler now. One that somebody else wants for something stays theirs. */
static bool claim(int signal)
{
    struct sigaction found;
    if (!signal || sigaction(signal, NULL, &found))
        return false;
    if (!(found.sa_flags & SA_SIGINFO) && found.sa_handler == kicked)
        return true;
    if ((found.sa_flags & SA_SIGINFO) || found.sa_handler != SIG_DFL)
        return false;
    /* KVM_RUN ends on a signal whatever the flag says; a system call of a handler is not to be disturbed. */
    struct sigaction action = {.sa_handler = kicked, .sa_flags = SA_RESTART};
    return sigaction(signal, &action, NULL) == 0;
}

int umdev_kvm_gate_init(void)
{
    pthread_mutex_lock(&choice);
    if (!claim(chosen))
        for (chosen = SIGRTMAX - 3; chosen >= SIGRTMIN && !claim(chosen); chosen--)
            ; /* the last ones are least used */
    if (chosen < SIGRTMIN)
        chosen = 0;
    int result = chosen ? 0 : -EBUSY;
    pthread_mutex_unlock(&choice);
    return result;
}

/* The flag makes KVM_RUN return even if the signal comes before it is called; the signal ends one that is under way.
 * With gate_mutex held, which a thread takes before it gives the processor up: so the thread lives. */
static void kick(umdev_kvm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    if (vcpu->has_thread && atomic_load(&vcpu->in_guest))
        pthread_kill(vcpu->thread, vcpu->signal);
}

bool umdev_kvm_gate_wait(umdev_kvm_vcpu *vcpu)
{
    umdev_kvm *machine = vcpu->machine;
    pthread_mutex_lock(&machine->gate_mutex);
    atomic_store(&vcpu->in_guest, false);
    pthread_cond_broadcast(&machine->gate_changed);
    while (atomic_load(&machine->gate) && !atomic_load(&machine->ending))
        pthread_cond_wait(&machine->gate_changed, &machine->gate_mutex);
    bool over = atomic_load(&machine->ending);
    pthread_mutex_unlock(&machine->gate_mutex);
    return !over;
}

void umdev_kvm_gate_pass(umdev_kvm_vcpu *vcpu)
{
    umdev_kvm *machine = vcpu->machine;
    pthread_mutex_lock(&machine->gate_mutex);
    while (atomic_load(&machine->gate))
        pthread_cond_wait(&machine->gate_changed, &machine->gate_mutex);
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELAXED);
    atomic_store(&vcpu->in_guest, true);
    pthread_mutex_unlock(&machine->gate_mutex);
}

void umdev_kvm_gate_tell(umdev_kvm *machine)
{
    pthread_mutex_lock(&machine->gate_mutex);
    pthread_cond_broadcast(&machine->gate_changed);
    pthread_mutex_unlock(&machine->gate_mutex);
}

/* With gate_mutex held. */
static bool anybody_inside(const umdev_kvm *machine)
{
    for (uint32_t i = 0; i < machine->vcpu_count; i++)
        if (atomic_load(&machine->vcpus[i]->in_guest))
            return true;
    return false;
}

/* `until` NULL: for ever. */
static int stop(umdev_kvm *machine, const struct timespec *until)
{
    int error = 0;
    pthread_mutex_lock(&machine->gate_mutex);
    atomic_fetch_add(&machine->gate, 1);
    for (uint32_t i = 0; i < machine->vcpu_count; i++)
        kick(machine->vcpus[i]);
    while (!error && anybody_inside(machine))
        error = until ? pthread_cond_clockwait(&machine->gate_changed, &machine->gate_mutex, CLOCK_MONOTONIC, until)
                      : pthread_cond_wait(&machine->gate_changed, &machine->gate_mutex);
    if (error && anybody_inside(machine)) {
        atomic_fetch_sub(&machine->gate, 1);
        pthread_cond_broadcast(&machine->gate_changed);
    } else {
        error = 0;
    }
    pthread_mutex_unlock(&machine->gate_mutex);
    return -error;
}

void umdev_kvm_stop(umdev_kvm *machine)
{
    stop(machine, NULL);
}

int umdev_kvm_stop_within(umdev_kvm *machine, uint32_t seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += seconds;
    return stop(machine, &until);
}

void umdev_kvm_resume(umdev_kvm *machine)
{
    pthread_mutex_lock(&machine->gate_mutex);
    atomic_fetch_sub(&machine->gate, 1);
    pthread_cond_broadcast(&machine->gate_changed);
    pthread_mutex_unlock(&machine->gate_mutex);
}

void umdev_kvm_end(umdev_kvm *machine)
{
    pthread_mutex_lock(&machine->gate_mutex);
    atomic_store(&machine->ending, true);
    for (uint32_t i = 0; i < machine->vcpu_count; i++)
        kick(machine->vcpus[i]);
    pthread_cond_broadcast(&machine->gate_changed);
    pthread_mutex_unlock(&machine->gate_mutex);
}

int umdev_kvm_begin(umdev_kvm *machine)
{
    int code = umdev_kvm_gate_init(); /* the program may have taken the signal for itself since */
    if (code)
        return code;
    pthread_mutex_lock(&machine->gate_mutex);
    atomic_store(&machine->ending, false);
    pthread_mutex_unlock(&machine->gate_mutex);
    return 0;
}

void umdev_kvm_gate_take(umdev_kvm_vcpu *vcpu)
{
    sigset_t kicks;
    sigemptyset(&kicks);
    pthread_mutex_lock(&choice);
    vcpu->signal = chosen;
    pthread_mutex_unlock(&choice);
    sigaddset(&kicks, vcpu->signal);
    pthread_sigmask(SIG_UNBLOCK, &kicks, &vcpu->mask);
    pthread_mutex_lock(&vcpu->machine->gate_mutex);
    vcpu->thread = pthread_self();
    vcpu->has_thread = true;
    pthread_mutex_unlock(&vcpu->machine->gate_mutex);
}

void umdev_kvm_gate_give(umdev_kvm_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->machine->gate_mutex);
    vcpu->has_thread = false;
    pthread_mutex_unlock(&vcpu->machine->gate_mutex);
    pthread_sigmask(SIG_SETMASK, &vcpu->mask, NULL);
}
