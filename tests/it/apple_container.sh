#!/bin/sh
# Takes the command line of Apple's `container`: writes down each call with its environment, and runs the program of `run`
# in namespaces with the mounts that it names, as the first process of a root that has this machine's programs.
at=$(dirname "$0")
{
    printf 'call'
    for word in "$@"; do printf ' %s' "$word"; done
    printf '\n'
} >>"$at/calls"
env >>"$at/environments"
case $1 in
--version) echo 'container CLI version 0.5.0 (build: release)' ;;
system) ;;
stop)
    kill -KILL "$(cat "$at/pid")" 2>/dev/null
    ;;
run)
    shift
    mounts=
    while :; do
        case $1 in
        --detach | --rm) shift ;;
        --mount)
            mounts="$mounts $2"
            shift 2
            ;;
        --publish-socket)
            mounts="$mounts type=bind,source=$(dirname "${2%%:*}"),target=$(dirname "${2#*:}")"
            shift 2
            ;;
        --tmpfs)
            mounts="$mounts tmpfs=$2"
            shift 2
            ;;
        --user)
            user=$2
            shift 2
            ;;
        --workdir)
            folder=$2
            shift 2
            ;;
        --*) shift 2 ;;
        *) break ;;
        esac
    done
    shift # the image
    mkdir -p "$at/root"
    ROOT=$at/root MOUNTS=$mounts RUN_AS=$user FOLDER=$folder setsid unshare --mount --pid --fork --kill-child sh -c '
        set -e
        mount -t tmpfs root "$ROOT"
        cd "$ROOT"
        mkdir usr etc proc dev run
        mount --rbind /usr usr; mount --rbind /etc etc; mount --rbind /dev dev; mount -t proc proc proc
        for link in bin sbin lib lib64; do ln -s "usr/$link" "$link"; done
        for mount in $MOUNTS; do
            case $mount in tmpfs=*)
                mkdir -p ".${mount#tmpfs=}"
                mount -t tmpfs -o mode=1777 tmp ".${mount#tmpfs=}"
                continue
                ;;
            esac
            source=${mount#*source=} target=${mount#*target=}
            mkdir -p ".${target%%,*}"
            mount --bind "${source%%,*}" ".${target%%,*}"
            case $mount in *,readonly) mount -o remount,bind,ro ".${target%%,*}" ;; esac
        done
        folder=$FOLDER user=$RUN_AS
        unset ROOT MOUNTS FOLDER RUN_AS
        exec chroot --userspec="$user" . sh -c "cd $folder && exec \"\$@\"" sh "$@"
    ' sh "$@" </dev/null >"$at/output" 2>&1 &
    echo $! >"$at/pid"
    ;;
esac
