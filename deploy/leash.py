"""
Children that outlive nobody: when this process dies, by `kill -9` too, what it started is ended.

One small shell per process holds a list of process groups and reads a pipe whose other end only we have. When the pipe
closes, the shell ends every group on the list. Unlike PR_SET_PDEATHSIG this works on macOS, and does not fire when the
thread that started a child ends.
"""

import atexit
import os
import subprocess
import threading

_SCRIPT = """
trap '' INT TERM HUP
groups=
while read -r verb group; do
    case $verb in
        hold) groups="$groups $group" ;;
        free) kept=; for g in $groups; do [ "$g" = "$group" ] || kept="$kept $g"; done; groups=$kept ;;
    esac
done
for g in $groups; do kill -CONT -"$g"; kill -TERM -"$g"; done 2>/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do
    left=
    for g in $groups; do kill -0 -"$g" 2>/dev/null && left=1; done
    [ -z "$left" ] && exit 0
    sleep 0.5
done
for g in $groups; do kill -KILL -"$g"; done 2>/dev/null
"""

_lock = threading.Lock()
_shell: subprocess.Popen[bytes] | None = None


def hold(pid: int) -> None:
    """End the process group of `pid` (a child started in a session of its own) when we die, however we die."""
    _say(f"hold {pid}\n")


def free(pid: int) -> None:
    """The child has been waited for: its number may soon belong to somebody else."""
    _say(f"free {pid}\n")


def _say(line: str) -> None:
    global _shell  # noqa: PLW0603  one shell per process is the point
    with _lock:
        if _shell is None or _shell.poll() is not None:
            # A session of its own: Ctrl-C in a terminal, or a signal to our group, must not take it first.
            _shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            atexit.register(_shell.wait, 10)
            atexit.register(_close, _shell)  # handlers run last in, first out
        assert _shell.stdin is not None
        os.write(_shell.stdin.fileno(), line.encode())


def _close(shell: subprocess.Popen[bytes]) -> None:
    if shell.stdin is not None:
        shell.stdin.close()
