"""One thread a test process, and transformers without its progress bars and advice."""

import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()
