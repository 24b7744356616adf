/* doorbell: internal declarations of the core; no directives, cffi reads this too.
 *
 * A `umdev_doorbells` turns signals of eventfds into writes to one device's registers (KVM's ioeventfd is one such
 * signaller). It makes the eventfds itself and never waits on one, whatever its other holders do with it. Its owner
 * gives it a thread, so a slow handler of one device holds up no other device's doorbells.
 */
typedef struct umdev_doorbells umdev_doorbells;

/* NULL and *error: a negative errno. `device` must outlive it. */
umdev_doorbells *umdev_doorbells_new(umdev_device *device, int *error);
/* Closes the eventfds. No thread may be inside a call, `run` above all. */
void umdev_doorbells_free(umdev_doorbells *doorbells);
/* A new eventfd, non-blocking; it stays the object's. A signal of it is a posted write of `value`, `width` bytes (1, 2,
 * 4, 8), at `offset`. Any thread, also while `run` runs. A negative errno: -EINVAL for another width, or none is
 * left. */
int umdev_doorbells_add(umdev_doorbells *doorbells, uint32_t region, uint64_t offset, uint32_t width, uint64_t value);
/* Until `stop`: one write for the signals of a doorbell that came since its last one; a signal that comes later has a
 * write that begins later. One thread at a time; the program's signals go to others meanwhile. 0 or a negative
 * errno. */
int umdev_doorbells_run(umdev_doorbells *doorbells);
/* `run` ends, now or when it is called, after the write that it is in; what has not been written is dropped. Any
 * thread. */
void umdev_doorbells_stop(umdev_doorbells *doorbells);
