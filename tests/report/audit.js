// What the tests run inside the page: contrast as WCAG 2.1 defines it, and names of everything that can be operated.
const parse = (text) => {
  const numbers = (text.match(/[\d.]+/g) ?? []).map(Number);
  return numbers.length ? [numbers[0], numbers[1], numbers[2], numbers[3] ?? 1] : [0, 0, 0, 0];
};
const over = (top, under) => [0, 1, 2].map((c) => top[c] * top[3] + under[c] * (1 - top[3])).concat(1);
const luminance = (color) => {
  const [r, g, b] = color.slice(0, 3).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
};
const ground = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
};
const visible = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true, contentVisibilityAuto: false });

function textContrasts() {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(element.tagName) || !visible(element)) continue;
    const style = getComputedStyle(element);
    const svg = element instanceof SVGElement;
    const back = ground(element);
    const ratio = contrast(over(parse(svg ? style.fill : style.color), back), back);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    found.push({ text: walker.currentNode.textContent.trim().slice(0, 60), ratio, needed: large ? 3 : 4.5 });
  }
  return found;
}

function controlContrasts() {
  return [...document.querySelectorAll("button, select, input:not([type=checkbox]):not([type=range])")]
    .filter((element) => visible(element) && !element.disabled && parseFloat(getComputedStyle(element).borderTopWidth) > 0)
    .map((element) => ({
      text: element.id || element.textContent,
      ratio: contrast(parse(getComputedStyle(element).borderTopColor), ground(element.parentElement)),
      needed: 3,
    }));
}
