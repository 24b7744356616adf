/* python: what the limited API adds to the module that cffi makes. */
#include "python_internal.h"

#define FUNCTION(name) {#name, (PyCFunction)(void (*)(void))umdev_python_##name, METH_FASTCALL, NULL}

static PyMethodDef functions[] = {
    FUNCTION(bind_handlers),
    FUNCTION(dma_read),
    FUNCTION(dma_write),
    {NULL, NULL, 0, NULL},
};

int umdev_python_start(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *module = PyImport_ImportModule("umdev._native");
    int result = module ? PyModule_AddFunctions(module, functions) : -1;
    if (result)
        PyErr_Print();
    Py_XDECREF(module);
    PyGILState_Release(state);
    return result;
}
