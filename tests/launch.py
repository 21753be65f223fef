"""Starts queuectl.py as the command that `install` makes does: imported, so from its cached bytecode."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import queuectl

queuectl.leave(queuectl.main())
