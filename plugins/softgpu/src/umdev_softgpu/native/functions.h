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

/* Called in every thread before and after it waits for a client that carries memory by message. NULL: nobody is told. */
void softgpu_on_wait(void (*begins)(void), void (*ends)(void));

int softgpu_budget_left(const softgpu_budget *budget);
/* Any thread may end what runs on the budget: for good, or to go on later with another. */
void softgpu_budget_stop(softgpu_budget *budget);
void softgpu_budget_expire(softgpu_budget *budget);

/* Bytes of row `y` from byte `x` on; as softgpu_space_read and softgpu_space_write. */
int softgpu_surface_read(const softgpu_surface *surface, int64_t x, int64_t y, void *bytes, uint64_t length,
                         softgpu_fault *fault);
int softgpu_surface_write(const softgpu_surface *surface, int64_t x, int64_t y, const void *bytes, uint64_t length,
                          softgpu_fault *fault);

int softgpu_blit_begin(softgpu_blit *blit);
int softgpu_blit_step(softgpu_blit *blit, softgpu_budget *budget, softgpu_fault *fault);
