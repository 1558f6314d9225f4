"""Yearly images with a table: learn the share of trees, and map it. First: lazytiles demo --data years"""

import keras

import lazytiles as lt

keras.utils.set_random_seed(0)
tiles = lt.open_tiles("years/tiles.csv", "years/Images", frames=[2016, 2017, 2018])
tiles.plot(12).figure.savefig("years.png")
train, test = tiles.split(0.8, by="region_id", seed=0)

model = keras.Sequential([keras.Input(tiles.shape[1:]), keras.layers.Permute((2, 3, 1, 4))])
model.add(keras.layers.Reshape((32, 32, 9)))
for filters in (16, 32):
    model.add(keras.layers.Conv2D(filters, 3, strides=2, activation="relu"))
model.add(keras.layers.GlobalAveragePooling2D())
model.add(keras.layers.Dense(1))
model.compile(keras.optimizers.Adam(0.005), "mse")
model.fit(lt.KerasAdapter(train, batch_size=32, shuffle=True, normalize=True), epochs=8, verbose=2)
for scan in lt.predict(model, test, normalize=True):
    scan["y_pred"].to_csv(f"years-{scan['id']}.csv")
