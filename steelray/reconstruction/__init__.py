"""DRAEM and the convolutional autoencoder: networks, anomaly synthesis, training, checkpoint and scoring."""
