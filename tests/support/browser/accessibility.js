// What a page lacks for those who do not see it, see it badly, or have no mouse (of WCAG 2.2, levels A and AA, what a
// program can tell). Gives a list of sentences.
const problems = [];
const shown = (element) => element.checkVisibility({ visibilityProperty: true });
const all = (css) => [...document.querySelectorAll(css)].filter(shown);
const name = (element) => {
  const labels = element.labels ? [...element.labels].map((label) => label.innerText.trim()).join(' ') : '';
  return (element.getAttribute('aria-label') || labels || element.innerText || element.title || '').trim();
};
const say = (element, what) => problems.push(`${what}: ${element.outerHTML.slice(0, 160)}`);

if (!document.documentElement.lang) problems.push('no language (3.1.1)');
if (!document.title) problems.push('no title (2.4.2)');
if (all('h1').length !== 1) problems.push(`${all('h1').length} main headings (1.3.1)`);
let level = 1;
for (const heading of all('h1,h2,h3,h4')) {
  const next = Number(heading.tagName[1]);
  if (next > level + 1) say(heading, 'a level of headings is left out (1.3.1)');
  level = next;
}
for (const field of all('input:not([type=hidden]),select,textarea')) {
  if (!name(field)) say(field, 'a field without a label (3.3.2)');
}
for (const control of all('a[href],button,summary')) {
  if (!name(control)) say(control, 'a control without a name (4.1.2)');
}
for (const picture of all('img,svg')) {
  if (!picture.getAttribute('alt') && !picture.getAttribute('aria-label')) say(picture, 'a picture without words (1.1.1)');
}
for (const cell of all('th')) if (!cell.scope) say(cell, 'a heading of a table without a scope (1.3.1)');
for (const wide of all('.wide')) if (wide.tabIndex < 0) say(wide, 'what scrolls is not reached by keyboard (2.1.1)');
const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`twice the id ${id} (4.1.1)`);
for (const skip of document.querySelectorAll('a[href^="#"]')) {
  if (!document.querySelector(skip.getAttribute('href'))) say(skip, 'leads nowhere (2.4.1)');
}

// Contrast (1.4.3), of all that is text and has a plain background.
const channels = (text) => {
  const numbers = text.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
  return numbers.length < 4 ? [...numbers.slice(0, 3), 1] : numbers;
};
const over = (top, below) => top.slice(0, 3).map((value, place) => value * top[3] + below[place] * (1 - top[3]));
const luminance = (color) => {
  const [red, green, blue] = color.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const dark = matchMedia('(prefers-color-scheme: dark)').matches;
const background = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(channels(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, layer) => over(layer, below), dark ? [18, 18, 18] : [255, 255, 255]);
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !shown(element) || element.closest('svg,[aria-hidden],noscript,option')) continue;
  const style = getComputedStyle(element);
  const below = background(element);
  const [text, back] = [luminance(over(channels(style.color), below)), luminance(below)];
  const contrast = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
  if (contrast < (large ? 3 : 4.5)) say(element, `contrast ${contrast.toFixed(1)} (1.4.3)`);
}
return problems;
