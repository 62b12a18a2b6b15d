// The words of a caption with their probabilities. Pointing at one, or moving to it, lights the picture where the model
// looked and tells what else was likely. Text only ever enters the page as text.
"use strict";
const explainedWords = (picture, { words, heat_method: method, crop }) => {
  const percent = (probability) => (probability < 0.005 ? "<1\u00a0%" : `${Math.round(100 * probability)}\u00a0%`);
  const made = (name, className, ...children) => {
    const element = document.createElement(name);
    element.className = className;
    element.append(...children);
    return element;
  };

  const light = made("canvas", "light");
  light.hidden = true;
  picture.append(light);

  // The canvas lies where the heat belongs: on the picture as it is fitted into its frame, or on its central square.
  const place = () => {
    const image = picture.querySelector("img");
    const [wide, high] = [picture.clientWidth, picture.clientHeight];
    const scale = Math.min(wide / image.naturalWidth, high / image.naturalHeight);
    let [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    if (crop === "center") width = height = Math.min(width, height);
    Object.assign(light.style, {
      left: `${(wide - width) / 2}px`, top: `${(high - height) / 2}px`, width: `${width}px`, height: `${height}px`,
    });
  };

  const show = (heat) => {
    const [rows, columns] = [heat.length, heat[0].length];
    [light.width, light.height] = [columns, rows];
    const pixels = new ImageData(columns, rows);
    heat.flat().forEach((value, i) => { pixels.data[4 * i + 3] = Math.round(215 * (1 - value)); });
    light.getContext("2d").putImageData(pixels, 0, 0);
    place();
    light.hidden = false;
  };

  const told = made("p", "likely");
  told.setAttribute("aria-live", "polite");
  const hint = `Point at a word: what else was likely${method ? `, and where the model looked (${method})` : ""}.`;
  const rest = () => { light.hidden = true; told.textContent = hint; };

  const list = made("ol", "explained plain", ...words.map(({ text, probability, likely, heat }) => {
    const button = made("button", "word", text, made("small", "", percent(probability)));
    button.type = "button";
    button.style.setProperty("--probability", probability);
    const point = () => {
      told.textContent = likely.map((word) => `${word.text} ${percent(word.probability)}`).join(", ");
      if (heat && picture.querySelector("img")) show(heat);
    };
    for (const name of ["pointerenter", "focus", "click"]) button.addEventListener(name, point);
    for (const name of ["pointerleave", "blur"]) button.addEventListener(name, rest);
    return made("li", "", button);
  }));
  rest();
  return made("div", "explanation", list, told);
};
