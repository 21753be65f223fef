/* The python.exe of the Windows Python that build_windows_python.sh puts together: it hands its arguments to the
 * interpreter in the DLL beside it, whose name comes from the compiler's command line. */
#include <windows.h>
#include <stdio.h>

typedef int (*interpreter_main)(int argc, wchar_t **argv);

int wmain(int argc, wchar_t **argv)
{
    interpreter_main run = NULL;
    HMODULE interpreter = LoadLibraryA(PYTHON_DLL);

    if (interpreter != NULL)
        run = (interpreter_main)(void *)GetProcAddress(interpreter, "Py_Main");
    if (run == NULL) {
        fprintf(stderr, "no interpreter in %s: Windows error %lu\n", PYTHON_DLL, GetLastError());
        return 127;
    }
    return run(argc, argv);
}
