# Sourced by the scripts that need Debian packages: collects the missing ones and installs them.

missing=()
need() { # need PATH-OR-PROGRAM PACKAGE: PACKAGE is missing unless the path or the program exists
    [ -e "$1" ] || command -v "$1" >/dev/null || missing+=("$2")
}
install_missing() { # install_missing SCRIPT: installs what `need` has collected; SCRIPT begins each message
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "$1: please install: ${missing[*]}" >&2
        exit 1
    fi
    echo "$1: installing ${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >&2
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
    missing=()
}
