/* python: what Python and C call in each other most, by CPython's limited API. Everything else goes through cffi. No
 * directives, cffi reads this too.
 */

/* The context of umdev_python_callbacks. What it names is borrowed: the region keeps it, and itself, longer. */
typedef struct umdev_python_handlers {
    void *owner;  /* has bind(slot, event) and failed(slot, error) */
    void *reads;  /* lists by slot: the handler, or None until it is bound */
    void *writes;
} umdev_python_handlers;

/* What calls the handlers of an umdev_python_handlers. It takes the GIL for each. */
const umdev_callbacks *umdev_python_callbacks(void);

/* Adds bind_handlers, dma_read and dma_write (see _native.pyi) to the module. 0, or -1 with the error on stderr. */
int umdev_python_start(void);

/* Lets handlers that wait for the GIL run first, and now and then any thread. Called without the GIL, by a thread that
 * computes in Python. Waits 10 ms at most. */
void umdev_python_give_way(void);
int umdev_python_wanted(void); /* threads that wait for the GIL to run a handler */
