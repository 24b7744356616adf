/* python: what its C files share. The only ones that know CPython: tests without an interpreter leave this folder
 * out. */
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

extern void umdev_python_adopt(void); /* cffi's: python_callbacks.cdef */

/* Takes the GIL for a handler: before any thread that calls umdev_python_give_way. PyGILState_Release ends it. */
PyGILState_STATE umdev_python_enter(void);

/* Functions of the module; called with the GIL. */
PyObject *umdev_python_bind_handlers(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *umdev_python_dma_read(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *umdev_python_dma_write(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

#endif
