/* The worker's loop over jobs (batchd/worker/main.py, Worker._run), in C: to tell what compiling it would win.
 *
 * Nothing of batchd uses it. It keeps the same promises per job: position first, limit second, a clock read after
 * each call, values of the last type seen appended without a question. It leaves out failures and reports, which are
 * not paid per job.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <time.h>

/* run(items, call, append_to, words, flush_after_ns) -> jobs run; words[0] is the position, words[1] the limit. */
static PyObject *run(PyObject *module, PyObject *args)
{
    PyObject *items, *call, *values;
    Py_buffer words;
    long long flush_after_ns;
    if (!PyArg_ParseTuple(args, "OOO!w*L", &items, &call, &PyList_Type, &values, &words, &flush_after_ns))
        return NULL;
    volatile uint32_t *word = words.buf;
    PyObject *iterator = PyObject_GetIter(items), *item;
    PyTypeObject *known = NULL;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const long long flush_at = now.tv_sec * 1000000000LL + now.tv_nsec + flush_after_ns;
    uint32_t offset = 0;
    while (iterator != NULL && (item = PyIter_Next(iterator)) != NULL) {
        word[0] = offset;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        PyObject *value = offset < word[1] ? PyObject_CallOneArg(call, item) : NULL;
        Py_DECREF(item);
        if (value == NULL)
            break;
        if (Py_TYPE(value) != known)
            known = Py_TYPE(value);
        int failed = PyList_Append(values, value);
        Py_DECREF(value);
        if (failed)
            break;
        offset++;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec * 1000000000LL + now.tv_nsec >= flush_at)
            break;
    }
    Py_XDECREF(iterator);
    PyBuffer_Release(&words);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(offset);
}

static PyMethodDef methods[] = {{"run", run, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "compiled_loop", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_compiled_loop(void)
{
    return PyModule_Create(&definition);
}
