"""Speech self-supervised Transformers in JAX: models, data, training and timing."""

from jaxssl.runtime import memory

memory.keep()
