"""Speech self-supervised Transformers in JAX: models, data, training and timing."""

from jaxssl import memory

memory.keep()
