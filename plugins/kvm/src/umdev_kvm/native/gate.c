/* Who may be in the guest: stops, and the end of a run. */
#define _GNU_SOURCE
#include "internal.h"

#include <signal.h>
#include <time.h>

/* A signal whose handler does nothing: it only interrupts KVM_RUN. The last real-time ones are least used. */
#define KICK (SIGRTMAX - 3)

static void kicked(int signal)
{
    (void)signal;
}

int umdev_kvm_gate_init(void)
{
    /* KVM_RUN ends on a signal whatever the flag says; a system call of a handler is not to be disturbed. */
    struct sigaction action = {.sa_handler = kicked, .sa_flags = SA_RESTART};
    return sigaction(KICK, &action, NULL) ? -errno : 0;
}

/* The flag makes KVM_RUN return even if the signal comes before it is called; the signal ends one that is under way.
 * With gate_mutex held, which a thread takes before it gives the processor up: so the thread lives. */
static void kick(umdev_kvm_vcpu *vcpu)
{
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    if (vcpu->has_thread && atomic_load(&vcpu->in_guest))
        pthread_kill(vcpu->thread, KICK);
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

void umdev_kvm_begin(umdev_kvm *machine)
{
    pthread_mutex_lock(&machine->gate_mutex);
    atomic_store(&machine->ending, false);
    pthread_mutex_unlock(&machine->gate_mutex);
}

void umdev_kvm_gate_take(umdev_kvm_vcpu *vcpu)
{
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
}
