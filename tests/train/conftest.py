"""Lets the tests here import `toy_experiment`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
