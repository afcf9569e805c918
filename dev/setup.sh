#!/bin/sh
# Installs what gptloom is built with, where it is missing. Silent where nothing is.
#
#     dev/setup.sh
#
# On Debian and Ubuntu it installs by apt, as root or with sudo. Where it may not, it prints the one command to run;
# where there is no apt, what to install. Both end with status 2. What counts is whether a program compiles and links,
# so libraries installed in other ways do as well (DNNL_CFLAGS, DNNL_LIBS, CPATH, LIBRARY_PATH say where they are).
#
# oneDNN (or OpenBLAS, where a release has no oneDNN) multiplies matrices where the processor has AVX-512, and is installed
# with the rest or where that is easy; but without it our own products are taken, so a machine that cannot have it goes on. MATMUL=onednn
# or openblas insists on that one, MATMUL=plain asks for none. The same goes for Open MPI, which only training with
# several ranks needs; MPI=no asks for none. AARCH64=yes asks for a compiler and an emulator of that processor, with
# which make test-full tries the CPU's ops.
set -eu

CC=${CC:-gcc}
CXX=${CXX:-g++}

say() {
    printf 'setup: %s\n' "$*" >&2
}

# links COMPILER LANGUAGE HEADER FLAGS...: whether a program with that header links with those flags.
links() {
    compiler=$1 language=$2 header=$3
    shift 3
    # $compiler is not quoted: it may come with flags of its own, like the Makefile's CC.
    printf '#include <stdio.h>\n#if !__has_include(<%s>)\n#error\n#endif\nint main(void) { return 0; }\n' "$header" |
        $compiler -x "$language" - -o /dev/null "$@" >/dev/null 2>&1
}

# Prints the packages without which nothing can be built or tested, of those that do not link.
missing_required() {
    links "$CXX" c++ cstdio || printf 'g++ '
    links "$CC" c stdio.h -fopenmp || printf 'gcc '
    links "$CC" c cjson/cJSON.h -lcjson || printf 'libcjson-dev '
    links "$CC" c xxhash.h -lxxhash || printf 'libxxhash-dev '
    links "$CXX" c++ gtest/gtest.h -lgtest -lgtest_main -pthread || printf 'libgtest-dev '
    case ${MATMUL:-auto} in
    onednn) have_onednn || printf 'libdnnl-dev ' ;;
    openblas) have_openblas || printf 'libopenblas-dev ' ;;
    esac
    [ "${AARCH64:-no}" = no ] || have_aarch64 || printf 'gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user '
}

# A compiler for aarch64, and what runs its programs here.
have_aarch64() {
    { command -v aarch64-linux-gnu-gcc && command -v qemu-aarch64; } >/dev/null 2>&1
}

have_onednn() {
    # shellcheck disable=SC2086  # several flags
    links "$CC" c oneapi/dnnl/dnnl.h ${DNNL_CFLAGS:-} ${DNNL_LIBS:-} -ldnnl
}

have_openblas() {
    links "$CC" c cblas.h -lopenblas
}

# Whether there is nothing better to be had for matrix products than what links.
have_matmul() {
    [ "${MATMUL:-auto}" != auto ] || have_onednn
}

# Whether Open MPI is here, or not wanted.
have_mpi() {
    [ "${MPI:-yes}" = no ] || { command -v mpirun && command -v "${MPICC:-mpicc}"; } >/dev/null 2>&1
}

# Whether apt's package lists have ever been fetched (where not, it knows only what is installed).
apt_has_lists() {
    apt-cache policy 2>/dev/null | grep 'release ' | grep -qv 'a=now'
}

# Whether this release has the package, as far as the lists tell.
apt_has() {
    apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'
}

# Prints the package to install for matrix products: none where the release has none, or the second-best is there.
matmul_package() {
    if ! apt_has_lists || apt_has libdnnl-dev; then
        echo libdnnl-dev
    elif ! have_openblas && apt_has libopenblas-dev; then
        echo libopenblas-dev
    fi
}

# Prints the packages of Open MPI; none where the release has none.
mpi_packages() {
    if ! apt_has_lists || apt_has libopenmpi-dev; then echo 'libopenmpi-dev openmpi-bin'; fi
}

# Prints what can be done without, and is to be had.
wished_packages() {
    have_matmul || matmul_package
    have_mpi || mpi_packages
}

# What one does without, where the packages given are not installed.
loss_of() {
    case $* in *openmpi*) printf 'there will be no training with several ranks by MPI' ;; esac
    case $* in *openmpi*libdnnl* | *openmpi*openblas* | *libdnnl*openmpi* | *openblas*openmpi*) printf ', and ' ;; esac
    case $* in *libdnnl* | *openblas*) printf 'with AVX-512, matrix products will be slower than they could be' ;; esac
}

required=$(missing_required)
if [ -z "$required" ] && have_matmul && have_mpi; then exit 0; fi

if ! command -v apt-get >/dev/null 2>&1; then
    [ -n "$required" ] || exit 0
    say "this system has no apt. Install these with its own package manager, headers included, and run this again:"
    for package in $required; do
        case $package in
        g++) say "  a C++17 compiler ($CXX; CXX=... names another)" ;;
        gcc) say "  a C11 compiler with OpenMP ($CC; CC=... names another)" ;;
        libcjson-dev) say "  cJSON" ;;
        libxxhash-dev) say "  xxHash" ;;
        libgtest-dev) say "  GoogleTest" ;;
        libdnnl-dev) say "  oneDNN" ;;
        libopenblas-dev) say "  OpenBLAS" ;;
        gcc-aarch64-linux-gnu) say "  a C compiler for aarch64, aarch64-linux-gnu-gcc, with its C library" ;;
        qemu-user) say "  QEMU's emulation of programs of other processors, qemu-aarch64" ;;
        esac
    done
    have_matmul || say "  and, for fast matrix products with AVX-512, oneDNN or OpenBLAS (not needed)"
    have_mpi || say "  and, for training with several ranks, Open MPI with mpicc (not needed)"
    exit 2
fi

# A space between words, none at the end.
in_one_line() {
    # shellcheck disable=SC2086  # words
    set -- $1
    echo "$*"
}

packages=$(in_one_line "$required$(wished_packages)")
[ -n "$packages" ] || exit 0 # this release has nothing for what is missing

# How to become root: as we are, by sudo without a password, or by sudo that may ask for one on a terminal.
may_install=yes as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        may_install=no
    elif sudo -n true 2>/dev/null; then
        as_root='sudo -n'
    elif [ -t 0 ] && [ -t 2 ]; then
        as_root=sudo
    else
        may_install=no
    fi
fi

command="apt-get update && apt-get install -y --no-install-recommends $packages"
if [ "$may_install" = yes ]; then
    :
elif command -v sudo >/dev/null 2>&1; then
    command="sudo sh -c '$command'"
else
    command="su -c '$command'"
fi

# Only what one can do without is missing: not worth a wait for the network at every build, nor a stop.
if [ -z "$required" ] && { [ "$may_install" = no ] || ! apt_has_lists; }; then
    say "not installed: $packages. So $(loss_of "$packages"). To install:"
    printf '    %s\n' "$command" >&2
    exit 0
fi

if [ "$may_install" = no ]; then
    say "packages are missing, and installing them needs root. Run this one command, then go on:"
    printf '    %s\n' "$command" >&2
    exit 2
fi

# What apt says is kept, and shown where it fails.
log=${BUILD:-build}/setup.log
{ mkdir -p "${log%/*}" && : >"$log"; } 2>/dev/null || log=/dev/null

apt() {
    # shellcheck disable=SC2086  # sudo and its flag, or nothing
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1 && return
    tail -n 15 "$log" >&2
    return 1
}

say "installing $packages ($log has what apt says)"
apt update || say "apt-get update failed: trying with the package lists as they are"
wished=$(in_one_line "$(wished_packages)") # the lists may know better now
# shellcheck disable=SC2086  # package names, a word each
apt install -y --no-install-recommends $required $wished || {
    if [ -n "$required" ]; then
        say "apt-get could not install $packages: see above, or run this yourself:"
        printf '    %s\n' "$command" >&2
        exit 2
    fi
    say "going on without $wished: $(loss_of "$wished")"
}

required=$(missing_required)
if [ -n "$required" ]; then
    say "installed, but with $CC and $CXX this still does not link: ${required% }"
    exit 2
fi
