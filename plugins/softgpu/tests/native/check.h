/* What the C tests share. */
#ifndef SOFTGPU_CHECK_H
#define SOFTGPU_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "umdev_check.h"

void test_bells(void);

#endif
