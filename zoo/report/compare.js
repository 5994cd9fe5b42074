const place = document.getElementById("images")
for (const image of scene.images) {
  const both = make("div", "two-columns")
  for (const [side, name, only, wrong] of [["a", "first", image.only_first, image.wrong_first],
    ["b", "second", image.only_second, image.wrong_second]]) {
    const figure = photo(side + image.row)
    figure.querySelector("figcaption").textContent =
      `${name}: finds ${only} that the other does not, ${wrong} wrong · ${image.file}`
    both.append(figure)
  }
  place.append(both)
}
