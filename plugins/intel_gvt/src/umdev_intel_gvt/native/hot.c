/* What registers' handlers find their vGPU by. */
#include "hot.h"

static const umdev_api *umdev;

void gvt_use(const void *api)
{
    umdev = api;
}

const umdev_api *gvt_umdev(void)
{
    return umdev;
}

gvt_vgpu *gvt_vgpu_of(void *device)
{
    return umdev->user_data(device);
}
