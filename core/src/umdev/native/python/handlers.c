/* python: handlers of registers.
 *
 * One call of the interpreter for an access, with nothing around it: after a guest's exit, or a switch from the
 * client's process, neither the interpreter's code nor its data is in the nearest caches, so what counts is how much is
 * touched.
 */
#include "python_internal.h"

#include <stdbool.h>

/* The exception that is set ends the access as UMDEV_FAULT; the owner tells whoever is concerned. */
static void report(const umdev_python_handlers *handlers, uint32_t slot)
{
    PyObject *type, *error, *trace;
    umdev_device_fault();
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace)
        PyException_SetTraceback(error, trace);
    PyObject *told = PyObject_CallMethod(handlers->owner, "failed", "IO", (unsigned)slot, error);
    if (!told)
        PyErr_WriteUnraisable(handlers->owner);
    Py_XDECREF(told);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
}

/* A new reference to the handler, or NULL with an exception set. */
static PyObject *handler_get(const umdev_python_handlers *handlers, uint32_t slot, bool write)
{
    PyObject *handler = PyList_GetItem(write ? handlers->writes : handlers->reads, slot);
    if (handler && handler != Py_None)
        return Py_NewRef(handler);
    PyErr_Clear(); /* the lists are empty until the first handler is bound */
    return PyObject_CallMethod(handlers->owner, "bind", "Is", (unsigned)slot, write ? "write" : "read");
}

static PyObject *handler_call(PyObject *handler, const uint64_t *values, int count)
{
    if (count == 0)
        return PyObject_CallNoArgs(handler);
    PyObject *first = PyLong_FromUnsignedLongLong(values[0]);
    PyObject *second = first && count > 1 ? PyLong_FromUnsignedLongLong(values[1]) : NULL;
    PyObject *result = NULL;
    if (first && (second || count == 1))
        result = PyObject_CallFunctionObjArgs(handler, first, second, NULL);
    Py_XDECREF(first);
    Py_XDECREF(second);
    return result;
}

/* What the handler answers to a read: its low 64 bits. */
static uint64_t enter(const umdev_python_handlers *handlers, uint32_t slot, bool write, const uint64_t *values,
                      int count)
{
    PyGILState_STATE state = umdev_python_enter();
    PyObject *handler = handler_get(handlers, slot, write);
    PyObject *result = handler ? handler_call(handler, values, count) : NULL;
    uint64_t value = result && !write ? PyLong_AsUnsignedLongLongMask(result) : 0;
    if (!result || (value == UINT64_MAX && PyErr_Occurred()))
        report(handlers, slot);
    Py_XDECREF(result);
    Py_XDECREF(handler);
    PyGILState_Release(state);
    return value;
}

static uint64_t on_read(void *context, uint32_t slot)
{
    return enter(context, slot, false, NULL, 0);
}

static uint64_t on_read_element(void *context, uint32_t slot, uint32_t element)
{
    return enter(context, slot, false, (uint64_t[]){element}, 1);
}

static void on_write(void *context, uint32_t slot, uint64_t value)
{
    enter(context, slot, true, &value, 1);
}

static void on_write_old(void *context, uint32_t slot, uint64_t value, uint64_t old)
{
    enter(context, slot, true, (uint64_t[]){value, old}, 2);
}

static void on_write_element(void *context, uint32_t slot, uint32_t element, uint64_t value)
{
    enter(context, slot, true, (uint64_t[]){element, value}, 2);
}

const umdev_callbacks *umdev_python_callbacks(void)
{
    static const umdev_callbacks callbacks = {on_read, on_read_element, on_write, on_write_old, on_write_element};
    return &callbacks;
}

PyObject *umdev_python_bind_handlers(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "bind_handlers(address, owner, reads, writes)");
        return NULL;
    }
    umdev_python_handlers *handlers = PyLong_AsVoidPtr(arguments[0]);
    if (!handlers && PyErr_Occurred())
        return NULL;
    *handlers = (umdev_python_handlers){.owner = arguments[1], .reads = arguments[2], .writes = arguments[3]};
    Py_RETURN_NONE;
}
