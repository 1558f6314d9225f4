"""Images in one array file: tell their classes apart. First: lazytiles demo --data arrays"""

import keras
import numpy as np

import lazytiles as lt

keras.utils.set_random_seed(0)
images = lt.open_region("arrays/images.npy")  # or arrays/images.h5::images, or arrays/images.zarr
samples = lt.MultiSourceArray([images], labels=[np.load("arrays/labels.npy")])
samples.plot(12).figure.savefig("arrays.png")
train, test = samples.split(0.8, seed=0)

model = keras.Sequential([keras.Input(samples.shape[1:]), keras.layers.Conv2D(16, 7, activation="relu")])
model.add(keras.layers.Conv2D(16, 3, strides=2, activation="relu"))
model.add(keras.layers.GlobalAveragePooling2D())
model.add(keras.layers.Dense(3, activation="softmax"))
model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
model.fit(lt.KerasAdapter(train, batch_size=32, shuffle=True, normalize=True), epochs=6, verbose=2)
found = model.predict(lt.KerasAdapter(test, normalize=True), verbose=0).argmax(axis=1)
np.savetxt("arrays-found.csv", np.stack([test.labels, found], axis=1), "%d", ",", header="true,found")
