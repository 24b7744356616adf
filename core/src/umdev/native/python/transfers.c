/* python: DMA of a model's Python.
 *
 * The GIL is kept: to let it go and take it again costs as much as the copy of a page. So these do only what ends soon
 * and waits for nobody, a copy of at most LONGEST bytes within one map, and answer None or False for the rest.
 */
#include "python_internal.h"

#include <stdbool.h>

enum { LONGEST = 65536 };

struct range {
    umdev_memory *memory;
    uint64_t iova;
    unsigned long space;
};

/* False: not for us, whatever it is; the exception is cleared, since the long way raises a better one. */
static bool range_parse(PyObject *memory, PyObject *iova, PyObject *space, struct range *ret)
{
    ret->memory = PyLong_AsVoidPtr(memory);
    ret->iova = PyLong_AsUnsignedLongLong(iova);
    ret->space = PyLong_AsUnsignedLong(space);
    if (ret->memory && ret->space <= UINT32_MAX && !PyErr_Occurred())
        return true;
    PyErr_Clear();
    return false;
}

PyObject *umdev_python_dma_read(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    struct range range;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "dma_read(memory, iova, length, space)");
        return NULL;
    }
    Py_ssize_t length = PyLong_AsSsize_t(arguments[2]);
    if (!range_parse(arguments[0], arguments[1], arguments[3], &range) || length <= 0 || length > LONGEST)
        Py_RETURN_NONE;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, length);
    if (!bytes)
        return NULL;
    if (umdev_memory_copy(range.memory, (uint32_t)range.space, range.iova, PyBytes_AsString(bytes), (uint64_t)length,
                          0))
        return bytes;
    Py_DECREF(bytes);
    Py_RETURN_NONE;
}

PyObject *umdev_python_dma_write(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    struct range range;
    Py_buffer data;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "dma_write(memory, iova, data, space)");
        return NULL;
    }
    if (!range_parse(arguments[0], arguments[1], arguments[3], &range))
        Py_RETURN_FALSE;
    if (PyObject_GetBuffer(arguments[2], &data, PyBUF_SIMPLE)) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    bool done = data.len > 0 && data.len <= LONGEST &&
                umdev_memory_copy(range.memory, (uint32_t)range.space, range.iova, data.buf, (uint64_t)data.len, 1);
    PyBuffer_Release(&data);
    return PyBool_FromLong(done);
}
