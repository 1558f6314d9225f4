"""Photos in a table: tell their classes apart. First: lazytiles demo --data photos"""

import keras

import lazytiles as lt

keras.utils.set_random_seed(0)
photos = lt.open_tiles("photos/photos.csv", "photos/images", path="{file}", target="shape", size=(64, 64))
photos.plot(12).figure.savefig("photos.png")
train, test = photos.split(0.8, stratify="shape", seed=0)

model = keras.Sequential([keras.Input(photos.shape[1:])])
for filters in (16, 32, 64):
    model.add(keras.layers.Conv2D(filters, 3, strides=2, activation="relu"))
model.add(keras.layers.GlobalMaxPooling2D())
model.add(keras.layers.Dense(len(photos.classes), activation="softmax"))
model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(lt.KerasAdapter(train, batch_size=16, shuffle=True, normalize=True), epochs=12, verbose=2)
found = model.predict(lt.KerasAdapter(test, normalize=True), verbose=0).argmax(axis=1)
test.table.assign(found=[photos.classes[k] for k in found]).to_csv("photos-found.csv", index=False)
