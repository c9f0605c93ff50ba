"""What is compared here is arithmetic: compiling it without LLVM's optimiser is twice as fast."""

from small import fast_compilation  # noqa: F401
