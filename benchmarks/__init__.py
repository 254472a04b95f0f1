"""What training, extraction and stores cost on this device: ``hskd bench``. No hub, no data, random weights."""
