/* softgpu: the software engine's C interface. Include this one file; the declarations are in softgpu_decls.h. */
#ifndef SOFTGPU_H
#define SOFTGPU_H

#include "umdev.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SOFTGPU_ABI_MAJOR 1
#define SOFTGPU_ABI_MINOR 1

#include "softgpu_decls.h"

/* 1 when `api` is one that code built with this header can use. */
static inline int softgpu_api_fits(const softgpu_api *api)
{
    return api->header.major == SOFTGPU_ABI_MAJOR && api->header.size >= sizeof(softgpu_api);
}

#ifdef __cplusplus
}
#endif
#endif
