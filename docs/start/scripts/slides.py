"""Slides: find where cells stand close, and map it over whole slides. First: lazytiles demo --data slides"""

import keras
from keras import layers

import lazytiles as lt

keras.utils.set_random_seed(0)
grid = lt.make_grid("slides/slides", 64, stride=48, keep="tissue>0.05")
tiles = lt.open_tiles(grid, "slides", path="slides/{region_id}.tif", masks="masks/{region_id}.tif")
tiles.plot(12).figure.savefig("slides.png")
train, test = tiles.split(0.67, by="region_id", seed=0)

inputs = keras.Input(tiles.shape[1:])
x = layers.Conv2D(16, 5, strides=2, padding="same", activation="swish")(inputs)
x = layers.Conv2D(16, 3, padding="same", activation="swish")(layers.AveragePooling2D(4)(x))
x = layers.UpSampling2D(8, interpolation="bilinear")(layers.Conv2D(1, 1, activation="sigmoid")(x))
model = keras.Model(inputs, x)
model.compile(keras.optimizers.Adam(0.005), "binary_crossentropy")
model.fit(lt.KerasAdapter(train, batch_size=16, shuffle=True, normalize=True), epochs=8, verbose=2)
for scan in lt.predict(model, test, normalize=True, blend="hann", out="slides/maps", overwrite=True):
    print(scan["id"], scan["y_pred"].shape, scan["y_true"].mean())
