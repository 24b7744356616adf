/* intel_gvt: what the handlers of registers share. */
#ifndef GVT_HOT_H
#define GVT_HOT_H

#include "umdev.h"

#include "gvt_decls.h"

#define HIDDEN __attribute__((visibility("hidden")))

HIDDEN const umdev_api *gvt_umdev(void);
HIDDEN gvt_vgpu *gvt_vgpu_of(void *device);

#endif
