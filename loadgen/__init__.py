"""loadgen: traffic-shaping load generator and energy study for LLM serving."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("loadgen")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+source"
