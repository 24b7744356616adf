/* The bench's C side: floors, and loops that measure. No directives, cffi reads this too.
 * Every function returns 0 or a negative errno; times are nanoseconds of CLOCK_MONOTONIC. */

/* Answer each `request` bytes on a stream socket with `reply` bytes until the peer closes it. */
int umdev_bench_echo_serve(int socket, uint32_t request, uint32_t reply);

/* Send `request`, wait for `reply_length` bytes; times[i] is the i-th round trip. */
int umdev_bench_round_trips(int socket, const void *request, uint32_t request_length, uint32_t reply_length,
                            uint32_t count, uint64_t *times);

/* Send `post` `burst` times, one send each, then one `request` with its reply, which drains the server;
 * times[i] is the i-th burst, divided by its number of posts. */
int umdev_bench_posts(int socket, const void *post, uint32_t post_length, uint32_t burst, const void *request,
                      uint32_t request_length, uint32_t reply_length, uint32_t count, uint64_t *times);
