"""The script of the page: it draws what the page holds, and draws again when something is chosen. It loads nothing."""
SCRIPT = r"""'use strict';

// The tokens that a draw may give, most probable first: [[candidate, probability]], the share of all others, and
// whether the cut by top_p is known (it may lie beyond the candidates).
function distribution(logits, rest, temperature, topK, topP) {
  const isCut = topK > 0 && topK <= logits.length;
  const scaled = (isCut ? logits.slice(0, topK) : logits).map((logit) => logit / temperature);
  const others = isCut || rest === null ? -Infinity : rest;
  const top = Math.max(scaled[0], others);
  const sum = scaled.reduce((total, x) => total + Math.exp(x - top), Math.exp(others - top));
  let kept = scaled.map((x, i) => [i, Math.exp(x - top) / sum]);
  let share = Math.exp(others - top) / sum;
  let isExact = true;
  if (topP < 1) {
    let before = 0;
    const nucleus = [];
    for (const [i, p] of kept) {
      if (before >= topP) break;
      nucleus.push([i, p]);
      before += p;
    }
    isExact = before >= topP || share === 0;
    const mass = isExact ? before : topP;
    kept = nucleus.map(([i, p]) => [i, p / mass]);
    share = isExact ? 0 : Math.max(0, 1 - before / mass);
  }
  return {kept, share, isExact};
}

// Where the weights of a layer begin: rows of every head, the sink first where the layer has one.
function offsets(model) {
  const time = model.tokens.length;
  const starts = [];
  let start = 0;
  for (const layer of model.layers) {
    starts.push(start);
    start += layer.heads * (time * (time + 1) / 2 + (layer.sinks ? time : 0));
  }
  return starts;
}

// The weights of one query: of the sink (0 without one) and of the keys up to itself.
function row(model, layer, head, query) {
  const time = model.tokens.length;
  const sink = model.layers[layer].sinks ? 1 : 0;
  const perHead = time * (time + 1) / 2 + sink * time;
  const start = model.starts[layer] + head * perHead + query * (query + 1) / 2 + sink * query;
  const weights = Array.from(model.bytes.subarray(start, start + query + 1 + sink), (x) => (x / 255) ** 2);
  return {sink: sink ? weights[0] : 0, keys: sink ? weights.slice(1) : weights};
}

function sees(model, layer, query, key) {
  const window = model.layers[layer].window;
  return key <= query && (window === null || key > query - window);
}

function visible(text) {
  return text.replace(/ /g, '\u00b7').replace(/\n/g, '\u23ce').replace(/\t/g, '\u21e5');
}

async function unpack(model) {
  const packed = Uint8Array.from(atob(model.weights), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  model.bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  model.starts = offsets(model);
}

function colour(name) {
  const found = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(found.slice(i, i + 2), 16));
}

// One head as pixels: what a query does not see is grey, a weight is the darker the larger its root.
function paint(image, width, left, top, model, layer, head, colours) {
  const time = model.tokens.length;
  for (let query = 0; query < time; query++) {
    const keys = row(model, layer, head, query).keys;
    for (let key = 0; key < time; key++) {
      const share = key <= query ? Math.sqrt(keys[key]) : 0;
      const shown = sees(model, layer, query, key)
        ? colours.card.map((c, i) => c + (colours.ink[i] - c) * share) : colours.masked;
      image.set([...shown, 255], 4 * ((top + query) * width + left + key));
    }
  }
}

function drawHeads(canvas, model, only) {
  const colours = {card: colour('--card'), ink: colour('--a'), masked: colour('--line')};
  const step = model.tokens.length + (only ? 0 : 2);
  const rows = only ? 1 : model.layers.length;
  const columns = only ? 1 : Math.max(...model.layers.map((layer) => layer.heads));
  canvas.width = columns * step;
  canvas.height = rows * step;
  const context = canvas.getContext('2d');
  const picture = context.createImageData(canvas.width, canvas.height);
  for (let r = 0; r < rows; r++) {
    const layer = only ? only.layer : r;
    const heads = only ? [only.head] : [...Array(model.layers[layer].heads).keys()];
    heads.forEach((head, c) => paint(picture.data, canvas.width, c * step, r * step, model, layer, head, colours));
  }
  context.putImageData(picture, 0, 0);
}

function element(tag, text, css) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (css) made.className = css;
  return made;
}

function bar(label, value, most, css, words) {
  const line = [element('span', label), element('div'), element('b', words)];
  const filled = element('i', undefined, css);
  filled.style.width = (100 * value / (most || 1)).toFixed(1) + '%';
  line[1].append(filled);
  return line;
}

// ------------------------------------------------------------------------------------------------ one model
function show(section, model) {
  const find = (name) => section.querySelector('.' + name);
  const chosen = {layer: model.layers.length - 1, head: 0, token: model.tokens.length - 1};
  const text = (id) => visible(model.texts[id]);

  const strip = model.tokens.map((id, i) => {
    const button = element('button', text(id));
    button.title = 'token ' + i + ', id ' + id;
    button.addEventListener('click', () => { chosen.token = i; update(); });
    find('strip').append(button);
    return button;
  });

  function drawAttention() {
    drawHeads(find('head'), model, chosen);
    const weights = row(model, chosen.layer, chosen.head, chosen.token);
    strip.forEach((button, i) => {
      const weight = i <= chosen.token ? weights.keys[i] : 0;
      button.style.setProperty('--share', weight.toFixed(3));
      button.classList.toggle('chosen', i === chosen.token);
      button.classList.toggle('unseen', !sees(model, chosen.layer, chosen.token, i));
    });
    const window = model.layers[chosen.layer].window;
    const most = [...weights.keys.entries()].sort((a, b) => b[1] - a[1]).slice(0, 3).filter(([, w]) => w >= 0.01)
      .map(([key, w]) => text(model.tokens[key]) + ' (' + key + ') ' + w.toFixed(2));
    find('about').textContent = 'Layer ' + chosen.layer + ', head ' + chosen.head
      + (window === null ? '' : ', window of ' + window) + ': token ' + chosen.token + ' looks at ' + most.join(', ')
      + (model.layers[chosen.layer].sinks ? ', sink ' + weights.sink.toFixed(2) : '') + '.';
  }

  function drawPath() {
    const place = find('path');
    place.replaceChildren();
    const t = chosen.token;
    const most = Math.max(...model.attention.map((x) => x[t]), ...model.feed_forward.map((x) => x[t]));
    model.layers.forEach((layer, i) => {
      const rank = model.ranks[i + 1][t];
      const after = rank ? ', next token is no. ' + rank : '';
      place.append(...bar(i + ' attention', model.attention[i][t], most, 'model', model.attention[i][t].toPrecision(3)),
        ...bar('feed-forward', model.feed_forward[i][t], most, 'other', model.feed_forward[i][t].toPrecision(3)),
        ...bar('stream', 0, most, '', model.residual[i + 1][t].toPrecision(3) + after));
    });
    const heads = find('heads');
    heads.replaceChildren();
    const lengths = model.head_lengths[chosen.layer][t];
    lengths.forEach((x, head) => heads.append(
      ...bar('head ' + head, x, Math.max(...lengths), head === chosen.head ? 'model' : '', x.toPrecision(3))));
    section.querySelectorAll('.lens td').forEach((cell) => {
      cell.classList.toggle('chosen', cell.cellIndex === t + 1);
    });
  }

  function drawExperts() {
    const place = find('experts');
    if (!place) return;
    place.replaceChildren();
    model.layers.forEach((layer, i) => {
      if (!layer.experts) return;
      const kept = layer.experts.kept;
      const line = layer.experts.chosen[chosen.token].map((expert, x) =>
        expert + ' (' + layer.experts.weights[chosen.token][x].toFixed(2)
        + (kept && !kept[chosen.token][x] ? ', dropped: it had no room left' : '') + ')');
      place.append(element('p', 'Layer ' + i + ', of ' + layer.experts.count + ': ' + line.join(', ')));
    });
  }

  function drawSlots() {
    const place = find('slots');
    place.replaceChildren();
    for (const table of model.slots) {
      place.append(element('p', 'Layers ' + table.layers.join(', ') + ': ' + table.positions[0].length + ' slots'));
      const line = element('div', undefined, 'slotline');
      table.positions[chosen.token].forEach((position, slot) => {
        const cell = element('span', position < 0 ? '' : position, position === chosen.token ? 'new' : '');
        cell.title = 'slot ' + slot + (position < 0 ? ', empty' : ': ' + text(model.tokens[position]));
        line.append(cell);
      });
      place.append(line);
    }
  }

  function drawSampling() {
    const [temperature, topK, topP] = ['temperature', 'top_k', 'top_p'].map((name) => Number(find(name).value));
    find('settings').textContent = 'temperature ' + model.temperatures[temperature] + ', top_k ' + (topK || 'all')
      + ', top_p ' + topP.toFixed(2);
    const rest = model.candidates.rest && model.candidates.rest[chosen.token][temperature];
    const {kept, share, isExact} = distribution(
      model.candidates.logits[chosen.token], rest, model.temperatures[temperature], topK, topP);
    const place = find('drawn');
    place.replaceChildren();
    const ids = model.candidates.tokens[chosen.token];
    const next = model.tokens[chosen.token + 1];
    for (const [i, p] of kept.slice(0, 12)) {
      const css = ids[i] === next ? 'other' : 'model';
      place.append(...bar(text(ids[i]), p, kept[0][1], css, (100 * p).toFixed(1) + ' %'));
    }
    const more = kept.slice(12).reduce((total, [, p]) => total + p, share);
    find('more').textContent = kept.length + ' of the ' + ids.length + ' most probable tokens may be drawn'
      + (share > 0 ? ', and others' : '') + '; those not shown have ' + (100 * more).toFixed(1) + ' %.'
      + (isExact ? '' : ' The cut lies beyond these tokens, so the shares are approximate.');
  }

  function update() {
    drawAttention();
    drawPath();
    drawExperts();
    drawSlots();
    drawSampling();
  }

  find('layer').addEventListener('change', (event) => {
    chosen.layer = Number(event.target.value);
    chosen.head = Math.min(chosen.head, model.layers[chosen.layer].heads - 1);
    update();
  });
  find('number').addEventListener('change', (event) => {
    chosen.head = Math.min(Number(event.target.value), model.layers[chosen.layer].heads - 1);
    update();
  });
  find('all').addEventListener('click', (event) => {
    const box = event.target.getBoundingClientRect();
    const step = model.tokens.length + 2;
    const layer = Math.floor((event.clientY - box.top) / box.height * event.target.height / step);
    const head = Math.floor((event.clientX - box.left) / box.width * event.target.width / step);
    chosen.layer = Math.min(Math.max(layer, 0), model.layers.length - 1);
    chosen.head = Math.min(Math.max(head, 0), model.layers[chosen.layer].heads - 1);
    find('layer').value = chosen.layer;
    find('number').value = chosen.head;
    update();
  });
  find('head').addEventListener('click', (event) => {
    const box = event.target.getBoundingClientRect();
    const query = Math.floor((event.clientY - box.top) / box.height * model.tokens.length);
    chosen.token = Math.min(Math.max(query, 0), model.tokens.length - 1);
    update();
  });
  for (const name of ['temperature', 'top_k', 'top_p']) find(name).addEventListener('input', drawSampling);
  find('layer').value = chosen.layer;
  drawHeads(find('all'), model, null);
  update();
}

async function start() {
  const models = JSON.parse(document.getElementById('data').textContent);
  const sections = document.querySelectorAll('section.explained');
  for (let i = 0; i < models.length; i++) {
    await unpack(models[i]);
    show(sections[i], models[i]);
  }
}

if (typeof document !== 'undefined') start();
"""
