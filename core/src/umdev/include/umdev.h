/* umdev: the C ABI for hot paths. Include this one file; the declarations are in umdev_decls.h. */
#ifndef UMDEV_H
#define UMDEV_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define UMDEV_ABI_MAJOR 1
#define UMDEV_ABI_MINOR 0

#include "umdev_decls.h"

/* 1 when `api` is one that code built with this header can use. */
static inline int umdev_api_fits(const umdev_api *api)
{
    return api->header.major == UMDEV_ABI_MAJOR && api->header.size >= sizeof(umdev_api);
}

#ifdef __cplusplus
}
#endif
#endif
