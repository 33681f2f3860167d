"""The operations as Triton kernels: a file each, kernel and launcher; `backend.py` is what dispatch sees."""
