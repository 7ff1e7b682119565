"""Work of a tool's child process that goes wrong as asked."""

import os
import subprocess
import sys
import time


def answer(request):
    """Do what the request says."""
    match request["do"]:
        case "reply":
            sys.stdout.write("chatter\n")
            return {"pid": os.getpid(), "environment": dict(os.environ), "got": request.get("text")}
        case "raise":
            raise RuntimeError("a mistake of its own")
        case "abort":
            os.abort()
        case "exit":
            sys.exit(0)
        case "flood":
            return "x" * 2**23
        case "sleep":
            time.sleep(60)
        case "leave":
            # One that lives on, and holds what it inherits.
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
            return child.pid
    return None
