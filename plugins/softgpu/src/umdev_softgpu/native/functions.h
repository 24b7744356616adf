/* softgpu: the functions behind the table; no directives, cffi reads this too. See softgpu_decls.h. */
const softgpu_api *softgpu_get_api(void);

softgpu_port *softgpu_port_new(const umdev_api *api, umdev_device *device);
void softgpu_port_free(softgpu_port *port);
int softgpu_port_set_memory(softgpu_port *port, uint32_t target, uint8_t *host, uint64_t size, int writable);
void softgpu_port_close(softgpu_port *port);

softgpu_space *softgpu_space_linear(softgpu_port *port, uint32_t target, uint64_t base, uint64_t size);
softgpu_space *softgpu_space_paged(softgpu_port *port, const softgpu_format *format, softgpu_decode decode,
                                   void *context);
void softgpu_space_free(softgpu_space *space);
void softgpu_space_set_root(softgpu_space *space, uint32_t target, uint64_t address);
void softgpu_space_invalidate(softgpu_space *space);
int softgpu_space_read(softgpu_space *space, uint64_t address, void *bytes, uint64_t length, softgpu_fault *fault);
int softgpu_space_write(softgpu_space *space, uint64_t address, const void *bytes, uint64_t length,
                        softgpu_fault *fault);
int softgpu_space_translate(softgpu_space *space, uint64_t address, int write, softgpu_run *ret,
                            softgpu_fault *fault);

/* `context`: softgpu_masks, one per level. */
void softgpu_decode_masks(void *context, uint32_t level, uint64_t entry, softgpu_entry *ret);
/* Its address, for Python. */
softgpu_decode softgpu_masks_decoder(void);

/* Called in every thread before and after it waits for a client that carries memory by message. NULL: nobody is
 * told. */
void softgpu_on_wait(void (*begins)(void), void (*ends)(void));

int softgpu_budget_left(const softgpu_budget *budget);
/* Any thread may end what runs on the budget: for good, or to go on later with another. */
void softgpu_budget_stop(softgpu_budget *budget);
void softgpu_budget_expire(softgpu_budget *budget);

/* One per scheduler, and a bell for each queue that C fills. Any thread, unless it is said; nothing here waits long. */
softgpu_bells *softgpu_bells_new(void);          /* NULL without memory */
void softgpu_bells_free(softgpu_bells *bells);   /* bells of it may be freed later */
softgpu_bell *softgpu_bell_new(softgpu_bells *bells, uint64_t number); /* not 0; NULL without memory */
void softgpu_bell_free(softgpu_bell *bell);      /* nobody rings it any more */
void softgpu_bell_ring(softgpu_bell *bell);
int softgpu_bells_rung(softgpu_bells *bells);    /* 1: one has rung that was not taken */
uint64_t softgpu_bells_take(softgpu_bells *bells); /* the number of the one that rang first, 0 for none */
void softgpu_bells_wake(softgpu_bells *bells);   /* ends the wait under way, or else the next one */
/* One thread at a time: until a bell has rung, somebody wakes, or `ns` have passed. */
void softgpu_bells_wait(softgpu_bells *bells, uint64_t ns);

/* The calling thread computes for long: threads that wake come first. 0 or a negative errno, which changes nothing. */
int softgpu_thread_computes(uint64_t slice_ns);

/* Bytes of row `y` from byte `x` on; as softgpu_space_read and softgpu_space_write. */
int softgpu_surface_read(const softgpu_surface *surface, int64_t x, int64_t y, void *bytes, uint64_t length,
                         softgpu_fault *fault);
int softgpu_surface_write(const softgpu_surface *surface, int64_t x, int64_t y, const void *bytes, uint64_t length,
                          softgpu_fault *fault);

int softgpu_blit_begin(softgpu_blit *blit);
int softgpu_blit_step(softgpu_blit *blit, softgpu_budget *budget, softgpu_fault *fault);
