"use strict";
// What the charts share: data, colours, controls, and when they are drawn.

const charts = { kinds: {} }; // `kinds`: name of a chart -> function that draws it into a figure

(() => {
  const sections = JSON.parse(document.getElementById("charts-data").textContent);
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  // Colour of the style sheet as it is now, light or dark.
  charts.color = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };

  const scaled = (units) => (value) => {
    if (!value) return "0";
    const [unit, size] = units.find(([, size]) => Math.abs(value) >= size) ?? units.at(-1);
    return `${Number((value / size).toPrecision(4)).toLocaleString("en")} ${unit}`;
  };
  charts.seconds = scaled([["s", 1], ["ms", 1e-3], ["µs", 1e-6], ["ns", 1e-9]]);
  charts.bytes = scaled([["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["B", 1]]);

  charts.element = (tag, properties, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  // Names of plans come from outside: text, never HTML.
  charts.tip = (title, lines) => charts.element("div", { className: "tip" },
    charts.element("b", { textContent: title }), `\n${lines.filter(Boolean).join("\n")}`);

  charts.button = (text, title, act) => {
    const made = charts.element("button", { type: "button", textContent: text, title });
    made.addEventListener("click", act);
    return made;
  };

  charts.select = (name, options, value, act) => {
    const box = charts.element("select", {}, ...options.map(([of, text]) => new Option(text, of)));
    box.value = value;
    box.addEventListener("change", () => act(box.value));
    return charts.element("label", {}, name, box);
  };

  // A place to draw: the element, an ECharts instance that keeps its size, and a line that says what is to be seen.
  charts.stage = (figure, label) => {
    const place = charts.element("div", { className: "chart", tabIndex: 0, ariaLabel: label });
    place.setAttribute("role", "group");
    const said = charts.element("p", { className: "said" });
    figure.append(place, said);
    let chart = null;
    return {
      place,
      said,
      get chart() { return chart; },
      draw(option, height) {
        place.style.height = `${height}px`;
        chart ??= echarts.init(place, null, { renderer: "canvas" });
        chart.resize();
        chart.setOption(option, { notMerge: true });
      },
    };
  };

  charts.base = () => ({
    animation: false,
    backgroundColor: "transparent",
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: charts.color("ink") },
    tooltip: {
      confine: true,
      backgroundColor: charts.color("card"),
      borderColor: charts.color("line"),
      textStyle: { color: charts.color("ink") },
    },
  });
  charts.axis = (more) => ({
    axisLine: { show: false },
    axisTick: { show: false },
    splitLine: { show: false },
    axisLabel: { color: charts.color("soft"), fontSize: 11, ...more.axisLabel },
    nameTextStyle: { color: charts.color("soft"), fontSize: 11 },
    ...Object.fromEntries(Object.entries(more).filter(([name]) => name !== "axisLabel")),
  });
  charts.title = (text, left, top) => ({
    text, left, top, padding: 0, textStyle: { fontSize: 13, lineHeight: 20, fontWeight: 600, color: charts.color("ink") },
  });
  // Letters that can be read on a colour `#rrggbb`.
  charts.ink = (color) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140 ? "#ffffff" : "#1c2430";
  };
  charts.short = (name, width) => {
    const letters = Math.max(12, Math.floor(width / 7.5));
    return name.length <= letters ? name : `${name.slice(0, letters / 2 - 1)}…${name.slice(1 - letters / 2)}`;
  };

  // Which plans a section shows, the first and the one beside it: chosen once for all its charts.
  function chooser(section, redraw) {
    const options = section.plans.map((name, index) => [String(index), name]);
    const bar = charts.element("div", { className: "controls" });
    if (options.length < 2) return bar;
    const set = (place) => (value) => {
      section.shown[place] = Number(value);
      redraw();
    };
    bar.append(charts.select("Charts show", options, section.shown[0], set(0)),
      charts.select("beside", [["-1", "nothing"], ...options], section.shown[1] ?? -1, set(1)));
    if (section.left_out) bar.append(`${section.left_out} more plans are in the tables alone: they would make the page heavy.`);
    return bar;
  }

  charts.shown = (section) => [...new Set(section.shown)].filter((plan) => plan >= 0);

  function start(figures, section) {
    const drawn = [];
    const all = [...figures.querySelectorAll("figure[data-chart]")];
    if (!all.length) return;
    const redraw = () => drawn.forEach((draw) => draw());
    all.find((figure) => figure.dataset.chart !== "step-time")?.before(chooser(section, redraw)); // which has all plans
    const begin = (figure) => {
      const name = figure.dataset.chart;
      const draw = charts.kinds[name](figure, section, section[name]);
      let width = 0;
      new ResizeObserver(([entry]) => {
        if (Math.abs(entry.contentRect.width - width) < 2) return;
        width = entry.contentRect.width;
        draw();
      }).observe(figure);
      drawn.push(draw);
    };
    // Far charts wait until somebody comes near, or prints.
    const near = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) run(target);
    }, { rootMargin: "600px" });
    const run = (figure) => {
      if (figure.dataset.drawn) return;
      figure.dataset.drawn = "yes";
      near.unobserve(figure);
      begin(figure);
    };
    all.forEach((figure) => near.observe(figure));
    addEventListener("beforeprint", () => all.forEach(run));
    page.changed.push(redraw);
  }

  addEventListener("DOMContentLoaded", () => {
    for (const figures of document.querySelectorAll("[data-section]")) {
      start(figures, sections[Number(figures.dataset.section)]);
    }
  });
})();
