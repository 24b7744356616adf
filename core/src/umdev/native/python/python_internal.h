/* python: what its C files share. The only ones that know CPython: tests without an interpreter leave this folder out. */
#ifndef UMDEV_PYTHON_INTERNAL_H
#define UMDEV_PYTHON_INTERNAL_H

#include <pyconfig.h>
#ifndef Py_GIL_DISABLED /* free-threaded builds have no limited API */
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include "umdev.h"
#include "device_decls.h"
#include "memory_decls.h"
#include "python_decls.h"

/* Functions of the module; called with the GIL. */
PyObject *umdev_python_bind_handlers(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *umdev_python_dma_read(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *umdev_python_dma_write(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

#endif
