"""How many operations per second a device can do at most, by its vendor's data sheet."""

import keras

# Dense matrix products in TFLOP/s: bfloat16 and float16, then float32 (TF32 tensor cores where
# there are any). Vendors' sheets often print twice as much, which holds for 2:4-sparse matrices.
# The first name that is part of the device's counts.
PEAK_TFLOPS = {
    "B200": (2250.0, 1125.0),
    "H200": (989.5, 494.7),
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.5, 417.5),
    "H100": (989.5, 494.7),
    "A100": (312.0, 156.0),
    "L40S": (362.0, 183.0),
    "L4": (121.0, 60.0),
    "A10": (125.0, 62.5),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}


def peak_flops_per_second(precision: str = "bfloat16") -> float | None:
    """Return the present device's peak in floating-point operations per second, or None.

    Args:
        precision: A dtype policy: "float32", or any other for the rate of half precision.

    Returns:
        None on a CPU, and for devices that `PEAK_TFLOPS` does not list.
    """
    name = device_name()
    for listed, (half, single) in PEAK_TFLOPS.items():
        if _is_part(listed, name):
            return 1e12 * (single if precision == "float32" else half)
    return None


def _is_part(listed, name):
    """Tell whether all words of a listed name are words of the device's: "A10" is no "A100"."""
    words = name.lower().replace("-", " ").split()
    return all(word in words for word in listed.lower().split())


def device_name() -> str:
    """Return the name of the device that the backend computes on: "NVIDIA H100 80GB HBM3", "cpu".

    Of several devices it is the first one's.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.devices()[0].device_kind
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu")
