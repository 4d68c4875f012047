"""From text and images to ids and pixels."""
