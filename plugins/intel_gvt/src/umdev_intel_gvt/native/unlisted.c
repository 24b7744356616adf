/* Registers that the model does not list: plain memory, seen in the burn-down list. */
#include "umdev.h"

#include "gvt_decls.h"

/* The core has stored a write already; UNHANDLED makes it an entry of the list. A read answers what was stored; one
 * that would answer 0 is UNHANDLED too, which reads as 0 anyway: so an offset that is only read is listed as well. */
int gvt_unlisted(void *device, const umdev_access *access, uint64_t *value)
{
    if (!(access->flags & UMDEV_WRITE) && *value != 0)
        return UMDEV_OK;
    return UMDEV_UNHANDLED;
}
