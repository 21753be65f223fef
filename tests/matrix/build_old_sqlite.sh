#!/usr/bin/env bash
# Builds an old SQLite as a shared library; any Python that links SQLite dynamically then runs on it:
#
#   build_old_sqlite.sh 3.26.0 OUTDIR
#   LD_LIBRARY_PATH=OUTDIR python3 -c 'import sqlite3; print(sqlite3.sqlite_version)'
#
# The sources come out of npm's sqlite3 packages, which carry SQLite's own release archives. About 30 s of one core.
# Needs: apt-get install -y --no-install-recommends gcc libc6-dev npm
set -euo pipefail
if [ $# != 2 ]; then echo "usage: build_old_sqlite.sh VERSION OUTDIR" >&2; exit 2; fi
version=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
case $version in
  3.24.0) package=4.0.4 archive=3240000 sha256=d9d14e88c6fb6d68de9ca0d1f9797477d82fc3aed613558f87ffbdbbc5ceb74a ;;
  3.26.0) package=4.0.6 archive=3260000 sha256=5daa6a3fb7d1e8c767cd59c4ded8da6e4b00c61d3b466d0685e35c4dd6d7bf5d ;;
  3.31.1) package=4.2.0 archive=3310100 sha256=62284efebc05a76f909c580ffa5c008a7d22a1287285d68b7825a2b6b51949ae ;;
  3.34.0) package=5.0.2 archive=3340000 sha256=bf6db7fae37d51754737747aaaf413b4d6b3b5fbacd52bdb2d0d6e5b2edd9aee ;;
  *) echo "build_old_sqlite.sh: knows 3.24.0, 3.26.0, 3.31.1 and 3.34.0, not $version" >&2; exit 2 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent "sqlite3@$package" >npm.txt
tar -xzf "sqlite3-$package.tgz" "package/deps/sqlite-autoconf-$archive.tar.gz"
echo "$sha256  package/deps/sqlite-autoconf-$archive.tar.gz" | sha256sum --check --quiet
tar -xzf "package/deps/sqlite-autoconf-$archive.tar.gz"
source=sqlite-autoconf-$archive/sqlite3.c

# Pythons from 3.11 on refuse to load without this function, which came with 3.25.
if [ "$version" = 3.24.0 ]; then
  echo 'int sqlite3_create_window_function(void) { return SQLITE_ERROR; }' >>"$source"
fi
# What Pythons link to, and no more: no JSON, no FTS, no R-tree, since builds that old often lack them.
gcc -O1 -w -fPIC -shared -Wl,-soname,libsqlite3.so.0 -o "$out/libsqlite3.so.0" \
  -DSQLITE_THREADSAFE=1 -DHAVE_USLEEP=1 -DSQLITE_ENABLE_COLUMN_METADATA -DSQLITE_ENABLE_DESERIALIZE \
  -DSQLITE_ENABLE_LOAD_EXTENSION "$source" -ldl -lpthread -lm
