/* What the C tests share. */
#ifndef GVT_TEST_H
#define GVT_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "umdev_check.h"

uint64_t chance(void);

void test_hot(void);

#endif
